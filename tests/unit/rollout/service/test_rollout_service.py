"""The driver over an engine that fails as asked: bounded rounds, different seeds, errors that show an episode."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from megatron_empg.environments.base import Task
from megatron_empg.environments.deep_search.actions import SearchToolCall, format_action
from megatron_empg.environments.deep_search.search_service import LocalTools
from megatron_empg.launch.ports import free_port
from megatron_empg.recipe import Recipe
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.episode import Episode
from megatron_empg.rollout.episodes import Rollout
from megatron_empg.rollout.fleet import Fleet
from megatron_empg.rollout.service import rollout_service
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.rollout.service.client import RolloutServiceClient, RolloutServiceClientError
from megatron_empg.rollout.service.failures import RolloutServiceError
from megatron_empg.rollout.service.rollout_service import RolloutService, open_rollout_service
from megatron_empg.rollout.service.server import OneAtATime, RequestSuperseded, application
from megatron_empg.run.episode_log import read_episodes
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.metric_names import by_clock
from tests.support.limited import limited
from tests.support.one_turn import OneTurn, by_seed, questions_of
from tests.support.recipes import quickstart
from tests.support.serving import serving, wait_for
from tests.support.stub_engine import StubEngine

TOKEN = "0123456789abcdef"
T = TypeVar("T")


class Questions:
    """`count` training questions of the `kinds` in turn, drawn without balance."""

    def __init__(self, count: int, kinds: Sequence[str]) -> None:
        self.all = questions_of(kinds[number % len(kinds)] for number in range(count))

    def sample(self, split: str, count: int, seed: int) -> list[Task]:
        generator = random.Random(seed)
        drawn = generator.sample(self.all, len(self.all))
        return (drawn + generator.choices(self.all, k=count))[:count]

    def fixed(self, split: str, count: int) -> list[Task]:
        if count > len(self.all):
            raise ValueError(f"fixed: {count} {split} tasks were asked for; there are {len(self.all)}")
        return self.all[:count]


def recipe(*overrides: str) -> Recipe:
    few = ("rollout.groups=8", "rollout.group_size=2", "evaluation.questions=20", "environment.max_turns=2")
    few += ("algorithm.name=grpo",)
    return quickstart(*few, *overrides)


def limits(batch: int, round_: float) -> list[str]:
    """A request may take nearly as long as its round."""
    inner = {"episode": 0.95, "turn": 0.94, "request": 0.93}
    short = [f"limits.{name}_timeout={share * round_}" for name, share in inner.items()]
    return [f"limits.rollout_timeout={batch}", f"limits.round_timeout={round_}", *short]


@asynccontextmanager
async def driver(chat: ChatTokens, url: str, source: Any, recipe: Recipe) -> Any:
    config, _, turns = limited(2, 50, 500, concurrency=64)
    rollout = Rollout(Fleet([url]), TOKEN, chat, OneTurn, config, recipe.waits, max_turns=turns, seed=7)
    async with rollout as connected:
        yield RolloutService(recipe.service_config(), source, connected)


def with_driver(
    chat: ChatTokens, url: str, source: Any, given: Recipe, work: Callable[[RolloutService], Awaitable[T]]
) -> T:
    async def run() -> T:
        async with driver(chat, url, source, given) as opened:
            return await asyncio.wait_for(work(opened), 60)

    return asyncio.run(run())


def collect(chat: ChatTokens, url: str, source: Any, given: Recipe, step: int = 3) -> Batch:
    return Batch.from_bytes(with_driver(chat, url, source, given, lambda opened: opened.collect(step)))


# Rounds and seeds


class Clock:
    """Stands for `time` in a module, and is moved by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_refills_end_when_another_round_would_not_fit(chat: ChatTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group is dropped, so that only the clock ends the rounds: of 285 s, each round takes 80."""
    clock = Clock()
    monkeypatch.setattr(rollout_service, "time", clock)

    async def work(opened: RolloutService) -> bytes:
        play = opened.rollout.run_group_batch

        async def play_for_80_seconds(*args: Any, **kwargs: Any) -> list[Episode]:
            episodes = await play(*args, **kwargs)
            clock.now += 80.0
            return episodes

        opened.rollout.run_group_batch = play_for_80_seconds  # type: ignore[method-assign]
        return await opened.collect(3)

    with StubEngine(by_seed(chat)) as engine:
        given = recipe("algorithm.name=dapo", "algorithm.max_generation_rounds=1000", *limits(300, 150))
        batch = Batch.from_bytes(with_driver(chat, engine.url, Questions(100_000, ["lose"]), given, work))
    assert batch.experience.samples == []
    assert batch.metrics["train/rounds"] == 3
    assert batch.metrics["train/episodes_error"] == 0, "the last round was over too"


def test_a_round_that_hangs_gives_up_what_is_not_over(chat: ChatTokens) -> None:
    class Late(StubEngine):
        def delay_of(self, body: dict[str, Any]) -> float:
            return 3600.0 if body["sampling_params"]["seed"] in self.seeds[:3] else 0.0

    with Late(by_seed(chat)) as engine:
        given = recipe(*limits(12, 6))
        batch = collect(chat, engine.url, Questions(100, ["chance"]), given)
        assert batch.metrics["train/episodes_error"] == 3
        assert batch.metrics["train/episodes"] == 13


def test_questions_and_samples_of_a_step_are_all_different(chat: ChatTokens) -> None:
    """Six questions for twelve groups, and again in each refill."""
    with StubEngine(by_seed(chat)) as engine:
        given = recipe("rollout.groups=12", "algorithm.name=dapo", "algorithm.max_generation_rounds=4")
        collect(chat, engine.url, Questions(6, ["lose"]), given)
        assert len(engine.seeds) == 4 * 12 * 2
        assert len(set(engine.seeds)) == len(engine.seeds)


def test_a_refill_asks_other_questions_while_there_are_any(chat: ChatTokens) -> None:
    with StubEngine(by_seed(chat)) as engine:
        given = recipe("algorithm.name=dapo", "algorithm.max_generation_rounds=5")
        source = Questions(40, ["lose"])
        asked: list[str] = []
        source.sample = lambda split, count, seed: _noted(Questions.sample(source, split, count, seed), asked)  # type: ignore[method-assign]

        async def work(opened: RolloutService) -> list[str]:
            played: list[str] = []
            run = opened.rollout.run_group_batch

            async def noting(groups: Any, *rest: Any, **named: Any) -> Any:
                played.extend(group.task.id for group in groups)
                return await run(groups, *rest, **named)

            opened.rollout.run_group_batch = noting  # type: ignore[method-assign]
            await opened.collect(3)
            return played

        played = with_driver(chat, engine.url, source, given, work)
        assert len(played) == 40
        assert len(set(played)) == 40
        assert len(asked) > 40, "the draws themselves do repeat"


@pytest.mark.parametrize(("factor", "asked"), [(1.0, 8), (1.3, 11), (3.0, 24)])
def test_a_round_asks_for_more_questions_than_are_wanted_where_the_recipe_says_so(
    chat: ChatTokens, factor: float, asked: int
) -> None:
    """What is found beyond the batch is counted and left."""
    with StubEngine(by_seed(chat)) as engine:
        more = ("algorithm.name=dapo", f"algorithm.oversampling={factor}", "algorithm.max_generation_rounds=1")
        batch = collect(chat, engine.url, Questions(100, ["chance"]), recipe(*more))
        assert batch.metrics["train/episodes"] == 2 * asked
        names = ("kept", "dropped_equal", "surplus")
        assert sum(batch.metrics[f"train/groups_{name}"] for name in names) == asked
        assert len(batch.experience.groups.unique()) == batch.metrics["train/groups_kept"] <= 8


def _noted(tasks: list[Task], into: list[str]) -> list[Task]:
    into += [task.id for task in tasks]
    return tasks


def test_a_batch_follows_from_seed_and_step(chat: ChatTokens) -> None:
    with StubEngine(by_seed(chat)) as engine:
        source, given = Questions(6, ["chance", "lose"]), recipe("algorithm.name=dapo")
        batches = [collect(chat, engine.url, source, given, step) for step in (3, 4, 3)]
        sets = [set(engine.seeds[i * len(engine.seeds) // 3 :][: len(engine.seeds) // 3]) for i in range(3)]
        tokens = [[s.tokens.tolist() for s in batch.experience.samples] for batch in batches]
        assert tokens[0] == tokens[2]
        numbers = [{k: v for k, v in batch.metrics.items() if not by_clock(k)} for batch in batches]
        assert numbers[0] == numbers[2]
        assert batches[0].timeline is not None
        assert sets[0] != sets[1]


# What is not worth training on


def test_too_many_errors_end_the_batch_and_one_is_shown(chat: ChatTokens) -> None:
    with StubEngine(by_seed(chat)) as engine:
        given = recipe("limits.max_error_share=0.4")
        with pytest.raises(
            RolloutServiceError, match=r"(?s)step 3: 8 of 16 .*8 OSError.*max_error_share \(0.4\)"
        ) as caught:
            collect(chat, engine.url, Questions(8, ["chance", "breaks"]), given)
        assert "OSError: the tool is gone" in str(caught.value)
        assert "turn 1 (stop): 'answer" in str(caught.value)
        batch = collect(chat, engine.url, Questions(8, ["chance", "breaks"]), recipe("limits.max_error_share=0.5"))
        assert batch.metrics["train/episodes_error"] == 8


def test_what_was_not_measured_is_absent(chat: ChatTokens) -> None:
    from megatron_empg.rollout.service.collect import Collection

    metrics = Collection(4, lambda rewards: True).batch().metrics
    assert metrics["train/episodes"] == 0
    assert not {"train/reward", "train/success", "train/turns", "train/tokens_per_episode"} & set(metrics)


@pytest.mark.parametrize(
    ("kind", "says"), [("breaks", "OSError: the tool is gone"), ("unread", "read none of the policy's")]
)
def test_before_the_first_step_a_task_nobody_can_learn_is_refused(chat: ChatTokens, kind: str, says: str) -> None:
    with StubEngine(by_seed(chat)) as engine:
        with pytest.raises(RolloutServiceError, match="before the first step") as caught:
            with_driver(chat, engine.url, Questions(50, [kind]), recipe(), lambda opened: opened.probe())
        assert says in str(caught.value)
        assert "answer" in str(caught.value), "an episode is shown"


@pytest.mark.parametrize(("kind", "outcome"), [("breaks", "error"), ("unread", "truncated"), ("win", "success")])
def test_the_episodes_before_the_first_step_can_be_read_whatever_they_are_worth(
    chat: ChatTokens, kind: str, outcome: str, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path).open("")
    given = recipe(f"run.folder={tmp_path}", "logging.episodes_per_step=2")
    with StubEngine(by_seed(chat)) as engine, suppress(RolloutServiceError):
        with_driver(chat, engine.url, Questions(50, [kind]), given, lambda opened: opened.probe())
    episodes = read_episodes(folder.episodes / "probe.jsonl")
    assert [episode["outcome"] for episode in episodes] == [outcome] * len(episodes)
    assert len(episodes) == (1 if outcome == "error" else 2), "errors of one kind are shown once"
    assert episodes[0]["prompt"].endswith(
        "<|im_start|>user\nthe capital of Peru<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_episodes_of_a_refused_batch_can_be_read(chat: ChatTokens, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).open("")
    given = recipe(f"run.folder={tmp_path}")
    with StubEngine(by_seed(chat)) as engine, pytest.raises(RolloutServiceError):
        collect(chat, engine.url, Questions(50, ["breaks"]), given, step=3)
    (episode,) = read_episodes(folder.episodes / "refused_000004.jsonl")
    assert episode["error"] == "OSError: the tool is gone"


def test_a_step_that_trains_on_nothing_shows_episodes_all_the_same(chat: ChatTokens) -> None:
    with StubEngine(by_seed(chat)) as engine:
        source = Questions(50, ["lose"])
        batch = collect(
            chat, engine.url, source, recipe("algorithm.name=dapo", "algorithm.max_generation_rounds=2")
        )
    assert batch.episodes == 0
    assert [text.outcome for text in batch.untrained] == ["failure"] * 4
    assert all("the capital of Peru" in text.prompt for text in batch.untrained)


def test_the_episodes_before_the_first_step_use_no_seed_of_a_step(chat: ChatTokens) -> None:
    with StubEngine(by_seed(chat)) as engine:
        source = Questions(8, ["chance"])
        assert with_driver(chat, engine.url, source, recipe(), lambda opened: opened.probe()) == 8
        before = set(engine.seeds)
        collect(chat, engine.url, source, recipe(), step=0)
        with_driver(
            chat, engine.url, source, recipe("evaluation.questions=8"), lambda o: o.evaluate("test_id", False)
        )
        assert not before & set(engine.seeds[len(before) :])


# Evaluation


def test_an_error_is_a_question_not_answered(chat: ChatTokens) -> None:
    with StubEngine(by_seed(chat)) as engine:
        source = Questions(20, ["win", "breaks", "win", "lose"])
        result = with_driver(chat, engine.url, source, recipe(), lambda opened: opened.evaluate("test_id", True))
        assert (result.success, result.questions, result.errors) == (0.5, 20, 5)
        assert result.answered == "1010" * 5
        assert result.by_kind == {"breaks": 0.0, "lose": 0.0, "win": 1.0}
        assert result.metrics()["eval/test_id/greedy_questions"] == 20
        strict = recipe("limits.max_error_share=0.2")
        with pytest.raises(RolloutServiceError, match=r"evaluation of test_id: 5 of 20"):
            with_driver(chat, engine.url, source, strict, lambda opened: opened.evaluate("test_id", True))


def test_sampled_success_has_its_own_temperature(chat: ChatTokens) -> None:
    with StubEngine(by_seed(chat)) as engine:
        given = recipe("evaluation.temperature=0.4", "rollout.temperature=0.9", "evaluation.questions=2")
        for greedy in (False, True):
            with_driver(
                chat, engine.url, Questions(2, ["win"]), given, lambda o, g=greedy: o.evaluate("test_id", g)
            )
        assert [body["sampling_params"]["temperature"] for body in engine.bodies] == [0.4, 0.4, 0.0, 0.0]


# The service


@pytest.fixture
def served(chat: ChatTokens) -> Iterator[tuple[StubEngine, str]]:
    """An engine that takes its time, and the address of a driver that uses it."""
    port = free_port()
    with StubEngine(by_seed(chat), delay=0.5) as engine:
        given = recipe("evaluation.questions=40")
        opened = driver(chat, engine.url, Questions(30, ["chance"]), given)
        with serving(application(opened, TOKEN), port):
            yield engine, f"http://127.0.0.1:{port}"


def test_nothing_goes_on_for_a_client_that_has_gone(served: tuple[StubEngine, str]) -> None:
    engine, url = served
    engine.delay = 30.0
    with pytest.raises(RolloutServiceClientError, match="ReadTimeout"):
        RolloutServiceClient(url, TOKEN, timeout=2.0).rollout(1)
    wait_for(lambda: engine.in_flight == 0)
    assert engine.cancelled == len(engine.bodies) == 16
    engine.delay = 0.0
    assert Batch.from_bytes(RolloutServiceClient(url, TOKEN, timeout=30.0).rollout(1)).episodes == 16


def test_a_second_request_takes_the_place_of_the_first(served: tuple[StubEngine, str]) -> None:
    engine, url = served
    engine.delay = 30.0
    answers: dict[int, Any] = {}

    def ask(step: int) -> None:
        try:
            answers[step] = RolloutServiceClient(url, TOKEN, timeout=30.0).rollout(step)
        except RolloutServiceClientError as error:
            answers[step] = error

    first = threading.Thread(target=ask, args=(1,))
    first.start()
    wait_for(lambda: engine.in_flight == 16)
    engine.delay = 0.2
    ask(2)
    first.join(20)
    assert "later request took the place" in str(answers[1])
    assert Batch.from_bytes(answers[2]).episodes == 16
    assert engine.cancelled == 16, "the first one's, before the second began"


def test_a_third_request_waits_for_the_end_of_the_first() -> None:
    """The second, which it cancels, has not begun: the first is still ending."""
    under_way: list[int] = []
    most: list[int] = []

    async def work(number: int) -> int:
        under_way.append(number)
        most.append(len(under_way))
        try:
            if number == 1:
                await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.02)  # requests are cancelled, connections closed
            under_way.remove(number)
        return number

    async def run() -> list[Any]:
        desk = OneAtATime()
        asked: list[asyncio.Task[int]] = []
        for number in (1, 2, 3):
            asked.append(asyncio.create_task(desk.run(partial(work, number))))
            await asyncio.sleep(0.005)
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = asyncio.run(run())
    assert isinstance(first, RequestSuperseded)
    assert isinstance(second, RequestSuperseded)
    assert third == 3
    assert most == [1, 1]


def test_what_fails_in_the_driver_is_said_in_its_own_words(served: tuple[StubEngine, str]) -> None:
    _, url = served
    client = RolloutServiceClient(url, TOKEN, timeout=30.0)
    with pytest.raises(RolloutServiceClientError, match="500: ValueError: fixed: 40 test_id tasks were asked for"):
        client.evaluate("test_id", True)
    assert client.probe() == 8
    assert httpx.post(f"{url}/probe", trust_env=False).status_code == 401


def test_look_ups_never_run_on_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a tool that hangs would stop every episode, and no time limit could reach it."""
    loop, met = threading.get_ident(), set()
    search = LocalTools.search

    def witness(tools: LocalTools, query: str) -> str:
        met.add(threading.get_ident())
        return search(tools, query)

    monkeypatch.setattr(LocalTools, "search", witness)
    corpus = tmp_path / "corpus.jsonl"
    fact = {"type": "country", "facts": [["capital", "Lima", None]], "sentences": ["the capital is Lima ."]}
    pages = [{"title": name, "entity": name, **fact} for name in ("Peru", "Piru", "Perou")]
    corpus.write_text("".join(json.dumps(page) + "\n" for page in pages), encoding="utf-8")
    calls = (SearchToolCall("search", "capital Peru"), SearchToolCall("answer", "Lima"))
    chat = ChatTokens.from_pretrained(recipe().model.path)
    said = [chat._tokenizer(format_action("so", call), add_special_tokens=False)["input_ids"] for call in calls]
    prompts: list[int] = []

    def search_and_answer(body: dict[str, Any]) -> list[int]:
        """The longer prompts are those that hold what the search found."""
        prompts.append(len(body["token_ids"]))
        return [*said[len(body["token_ids"]) > min(prompts) + len(said[0])], chat.end_of_turn]

    async def run(url: str) -> bytes:
        given = recipe(f"environment.settings={{corpus: {corpus}, prompt: none}}")
        async with open_rollout_service(given.service_config(), [url], TOKEN) as opened:
            return await opened.collect(0)

    with StubEngine(search_and_answer) as engine:
        batch = Batch.from_bytes(asyncio.run(run(engine.url)))
    assert batch.metrics["train/success"] == 1.0, batch.texts[0]
    assert met
    assert loop not in met
