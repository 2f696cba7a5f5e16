"""A stream of groups over an engine that answers as asked: slots, order, drops, holding, and its accounts."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from megatron_empg.environments.base import Task
from megatron_empg.launch.ports import free_port
from megatron_empg.recipe import Recipe
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.episode import Episode
from megatron_empg.rollout.episodes import Group, Rollout
from megatron_empg.rollout.fleet import Fleet
from megatron_empg.rollout.seeds import derive_seed
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.rollout.service.client import RolloutServiceClient, RolloutServiceClientError
from megatron_empg.rollout.service.failures import RolloutServiceError, Untold
from megatron_empg.rollout.service.rollout_service import RolloutService
from megatron_empg.rollout.service.server import application
from megatron_empg.rollout.service.slots import StreamAccount
from megatron_empg.rollout.service.stream import GroupStream
from tests.support.limited import limited
from tests.support.one_turn import OneTurn, by_seed, questions_of
from tests.support.recipes import quickstart
from tests.support.serving import serving, wait_for
from tests.support.stub_engine import StubEngine

TOKEN = "0123456789abcdef"


class InOrder:
    """`kinds` of training questions, drawn in their order."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self.all = questions_of(kinds)

    def tasks(self, split: str) -> list[Task]:
        return self.all

    def sample(self, split: str, count: int, seed: int) -> list[Task]:
        return (self.all * (1 + count // len(self.all)))[:count]

    def fixed(self, split: str, count: int) -> list[Task]:
        return self.all[-count:]


@pytest.fixture
def engine(chat: ChatTokens) -> Any:
    with StubEngine(by_seed(chat)) as opened:
        yield opened


def recipe(*overrides: str) -> Recipe:
    few = ["rollout.groups=2", "rollout.group_size=2", "rollout.max_lag=1", "environment.max_turns=2"]
    few += ["algorithm.name=grpo", "run.steps=20", "evaluation.questions=4", "limits.rollout_timeout=20"]
    few += ["limits.sync_timeout=1"]
    return quickstart(*few, *overrides)


class Streaming:
    """A driver whose stream a test looks into."""

    def __init__(self, driver: RolloutService, gates: dict[str, asyncio.Event], engine: StubEngine) -> None:
        self.driver, self.gates, self.engine = driver, gates, engine

    @property
    def stream(self) -> GroupStream:
        assert self.driver.stream is not None
        return self.driver.stream

    async def batch(self, step: int) -> Batch:
        return Batch.from_bytes(await self.driver.collect(step))

    async def published(self, version: int, account: StreamAccount | None = None) -> None:
        self.engine.version = str(version)
        await self.driver.published(version, account)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came about")


@asynccontextmanager
async def streaming(
    chat: ChatTokens, engine: StubEngine, kinds: Sequence[str], given: Recipe, *, concurrency: int = 64
) -> AsyncIterator[Streaming]:
    gates: dict[str, asyncio.Event] = {}
    config, waits, turns = limited(2, 50, 500, concurrency=concurrency)
    rollout = Rollout(
        Fleet([engine.url]),
        TOKEN,
        chat,
        lambda task: OneTurn(task, gates),
        config,
        waits,
        max_turns=turns,
        seed=7,
    )
    async with rollout as connected:
        driver = RolloutService(given.service_config(), InOrder(kinds), connected)  # type: ignore[arg-type]
        try:
            yield Streaming(driver, gates, engine)
        finally:
            await asyncio.wait_for(driver.close(), 20)


def numbers(batch: Batch) -> list[int]:
    assert batch.account is not None
    return list(batch.account.numbers)


def test_the_next_batch_is_played_while_one_is_trained_on(chat: ChatTokens, engine: StubEngine) -> None:
    async def run() -> None:
        async with streaming(chat, engine, ["win"] * 40, recipe()) as one:
            await one.published(0)
            await until(lambda: one.stream.ready == 4)
            first = await one.batch(0)
            assert first.metrics["stream/ready"] == one.stream.ready == 2
            await asyncio.sleep(0.2)
            assert len(engine.bodies) == 8, "all slots are taken until new weights come"
            await one.published(1)
            second = await one.batch(1)
            await until(lambda: len(engine.bodies) == 12)
            assert set(numbers(first)) | set(numbers(second)) == {0, 1, 2, 3}
            assert second.token_versions.unique().tolist() == [0]

    asyncio.run(run())


def test_a_batch_is_the_first_groups_that_are_done(chat: ChatTokens, engine: StubEngine) -> None:
    async def run() -> None:
        async with streaming(chat, engine, ["late", "win", "win", "win", "win", "win"], recipe()) as one:
            await one.published(0)
            await until(lambda: one.stream.ready == 3)
            first = await one.batch(0)
            one.gates.setdefault("q0", asyncio.Event()).set()
            await until(lambda: one.stream.ready == 2)
            await one.published(1)
            second = await one.batch(1)
            assert 0 not in numbers(first)
            assert numbers(second)[1] == 0, "it was the last of four"

    asyncio.run(run())


def test_a_group_that_plays_past_its_lag_is_ended_and_counted(chat: ChatTokens, engine: StubEngine) -> None:
    """It enters at version 0 and could be trained on at step 1 at the latest."""

    async def run() -> None:
        async with streaming(chat, engine, ["late", *["win"] * 30], recipe()) as one:
            for step in range(4):
                await one.published(step)
                batch = await one.batch(step)
                assert 0 not in numbers(batch)
            assert batch.account is not None
            assert batch.account.dropped == {"stale": 1}
            assert batch.metrics["stream/dropped_stale"] == 1
            assert batch.metrics["stream/started"] == sum(
                batch.metrics[f"stream/{where}"]
                for where in ("trained", "dropped_equal", "dropped_errors", "dropped_stale", "in_flight", "ready")
            )

    asyncio.run(run())


def test_what_is_dropped_is_replaced_at_once_and_never_trained_on(chat: ChatTokens, engine: StubEngine) -> None:
    given = recipe("algorithm.name=dapo", "algorithm.max_generation_rounds=9", "limits.max_error_share=0.9")
    kinds = ["lose", "breaks", "chance", "win", "chance", "chance", "breaks", "chance"]

    async def run() -> None:
        async with streaming(chat, engine, kinds, given) as one:
            trained: list[int] = []
            for step in range(5):
                await one.published(step)
                batch = await one.batch(step)
                trained += numbers(batch)
                assert batch.metrics["train/groups_kept"] == 2
                for group in batch.experience.groups.unique():
                    rewards = batch.experience.rewards[batch.experience.groups == group]
                    assert len(rewards) == 2
                    assert rewards.unique().numel() == 2, "equal rewards, or an error's zero"
            account = batch.account
            assert account is not None
            assert account.dropped["equal"] > 0
            assert account.dropped["errors"] > 0
            assert len(set(trained)) == len(trained) == account.trained == 10

    asyncio.run(run())


def test_a_batch_for_which_too_many_are_dropped_is_what_there_is(chat: ChatTokens, engine: StubEngine) -> None:
    given = recipe("algorithm.name=dapo", "algorithm.max_generation_rounds=3")

    async def run() -> None:
        async with streaming(chat, engine, ["lose"], given) as one:
            await one.published(0)
            batch = await one.batch(0)
            assert batch.episodes == 0
            assert 3 * 2 <= batch.metrics["train/groups_dropped_equal"] <= 3 * 2 + 4
            assert [text.outcome for text in batch.untrained] == ["failure"], "of each task one is shown"

    asyncio.run(run())


def test_too_many_errors_end_the_run_and_one_is_shown(chat: ChatTokens, engine: StubEngine) -> None:
    async def run() -> None:
        async with streaming(chat, engine, ["breaks"], recipe()) as one:
            await one.published(0)
            with pytest.raises(RolloutServiceError, match=r"(?s)step 0: .*OSError: the tool is gone"):
                await one.batch(0)

    asyncio.run(run())


def test_asked_again_for_a_step_the_stream_hands_over_the_same(chat: ChatTokens, engine: StubEngine) -> None:
    async def run() -> None:
        async with streaming(chat, engine, ["win"] * 40, recipe()) as one:
            with pytest.raises(Untold, match="no weights were published yet"):
                await one.batch(0)
            await one.published(0)
            waiting = asyncio.create_task(one.batch(0))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            first, again = await one.batch(0), await one.batch(0)
            assert (first.account, first.metrics) == (again.account, again.metrics)
            assert first.texts == again.texts
            with pytest.raises(RolloutServiceError, match="next batch is that of step 1, not of step 3"):
                await one.batch(3)
            with pytest.raises(RolloutServiceError, match="version -1 was published after version 0"):
                await one.published(-1)

    asyncio.run(run())


def test_an_evaluation_gets_the_places_that_running_episodes_leave_and_no_other_begins(
    chat: ChatTokens, engine: StubEngine
) -> None:
    kinds = ["late", *["win"] * 40, "late"]

    def begun() -> int:
        return sum(body["sampling_params"]["temperature"] == 1.0 for body in engine.bodies)

    async def run() -> None:
        async with streaming(chat, engine, kinds, recipe("rollout.groups=4"), concurrency=2) as one:
            await one.published(0)
            await until(lambda: "q0" in one.gates and begun() == 2)
            evaluating = asyncio.create_task(one.driver.evaluate("test_id", greedy=True))
            await asyncio.sleep(0.2)
            assert len(engine.bodies) == 2, "two episodes at once are all there may be"
            one.gates["q0"].set()
            await until(lambda: one.stream.ready == 1)
            await until(lambda: "q41" in one.gates)
            await asyncio.sleep(0.1)
            assert begun() == 2, "those that had begun before"
            one.gates["q41"].set()
            assert (await evaluating).questions == 4
            assert (await one.batch(0)).episodes == 8

    asyncio.run(run())


def test_a_stream_that_goes_on_plays_what_was_unfinished_first_and_nothing_twice(
    chat: ChatTokens, engine: StubEngine
) -> None:
    async def run() -> None:
        async with streaming(chat, engine, ["win"] * 40, recipe()) as one:
            await one.published(0)
            first = await one.batch(0)
        account = first.account
        assert account is not None
        before = set(account.numbers)
        assert set(account.unfinished) | before == set(range(account.started))
        async with streaming(chat, engine, ["win"] * 40, recipe()) as again:
            await again.published(1, account)
            second = await again.batch(1)
            third_of = await _third(again)
            assert not before & set(numbers(second))
            assert set(account.unfinished) <= set(numbers(second)) | set(third_of)
            assert second.account is not None
            assert second.account.trained == 4

    async def _third(again: Streaming) -> list[int]:
        await again.published(2)
        return numbers(await again.batch(2))

    asyncio.run(run())


def test_a_groups_question_and_seeds_follow_from_the_runs_seed_and_its_number(
    chat: ChatTokens, engine: StubEngine
) -> None:
    async def run() -> None:
        async with streaming(chat, engine, ["win"] * 40, recipe()) as one:
            await one.published(0)
            await one.batch(0)
            await until(lambda: len(engine.bodies) == 8)

    asyncio.run(run())
    wanted = {derive_seed(7, number, f"q{number}", sample, 0) for number in range(4) for sample in range(2)}
    assert set(engine.seeds) == wanted


def test_closing_ends_every_request(chat: ChatTokens, engine: StubEngine) -> None:
    async def run() -> None:
        async with streaming(chat, engine, ["win"] * 40, recipe()) as one:
            engine.delay = 30.0
            await one.published(0)
            await until(lambda: engine.in_flight == 8)
        await until(lambda: engine.in_flight == 0)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []

    asyncio.run(run())
    assert engine.cancelled == 8


def test_seconds_are_counted_in_which_slots_alone_kept_engines_idle(chat: ChatTokens, engine: StubEngine) -> None:
    async def run() -> None:
        async with streaming(chat, engine, ["win"] * 40, recipe()) as one:
            await one.published(0)
            began = time.monotonic()  # before the batch, which is packed while the slots are taken already
            await one.batch(0)
            await asyncio.sleep(0.4)
            await one.published(1)
            second = await one.batch(1)
            assert 0.3 <= second.metrics["stream/idle_seconds"] <= time.monotonic() - began

    asyncio.run(run())


def test_no_second_is_counted_in_which_the_trainer_waits_for_the_engines(
    chat: ChatTokens, engine: StubEngine
) -> None:
    """All slots are taken meanwhile, and there is room for more episodes."""

    async def run() -> None:
        async with streaming(chat, engine, ["late"] * 40, recipe()) as one:
            await one.published(0)
            waiting = asyncio.create_task(one.batch(0))
            await until(lambda: len(one.gates) == 4)
            await asyncio.sleep(0.5)
            for gate in one.gates.values():
                gate.set()
            batch = await waiting
            assert batch.metrics["stream/wait_seconds"] >= 0.5
            assert batch.metrics["stream/idle_seconds"] < 0.1

    asyncio.run(run())


# What fails in the background


@pytest.mark.parametrize("error", [TimeoutError("the questions' disk"), OSError("no such disk")])
def test_a_source_that_fails_ends_the_run_and_is_named(
    chat: ChatTokens, engine: StubEngine, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fails(*_: Any) -> list[Task]:
        raise error

    monkeypatch.setattr(InOrder, "sample", fails)

    async def run() -> None:
        async with streaming(chat, engine, ["win"] * 40, recipe()) as one:
            await one.published(0)
            with pytest.raises(RolloutServiceError, match=f"broke off: {type(error).__name__}: {error}"):
                await one.batch(0)
            await one.published(1)
            with pytest.raises(RolloutServiceError, match="broke off"):
                await one.batch(0)
            assert engine.bodies == []

    asyncio.run(run())


def test_a_group_that_cannot_be_judged_ends_the_run_and_no_other_enters(
    chat: ChatTokens, engine: StubEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ArithmeticError("rewards that nobody can compare")

    monkeypatch.setattr("megatron_empg.rollout.service.stream.reason_to_drop", fails)

    async def run() -> None:
        async with streaming(chat, engine, ["win"] * 40, recipe()) as one:
            await one.published(0)
            with pytest.raises(RolloutServiceError, match="broke off: ArithmeticError: rewards that nobody"):
                await one.batch(0)
            await one.published(1)
            await asyncio.sleep(0.2)
            assert len(engine.bodies) <= 8, "those of the four groups that had entered"

    asyncio.run(run())


@pytest.mark.parametrize("error", [ArithmeticError("out of bounds"), asyncio.CancelledError("by itself")])
def test_an_episode_that_breaks_its_player_ends_the_run(
    chat: ChatTokens, engine: StubEngine, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    async def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Rollout, "play", fails)

    async def run() -> None:
        async with streaming(chat, engine, ["win"] * 40, recipe()) as one:
            await one.published(0)
            with pytest.raises(RolloutServiceError, match=f"broke off: {type(error).__name__}"):
                await one.batch(0)

    asyncio.run(run())


def test_a_group_that_is_too_old_and_fails_in_its_end_does_not_end_the_stream(
    chat: ChatTokens, engine: StubEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = Rollout.play

    async def fails_when_it_is_ended(rollout: Rollout, group: Group, sample: int, step: int) -> Episode:
        try:
            return await play(rollout, group, sample, step)
        except asyncio.CancelledError:
            raise ArithmeticError("in the middle of it") from None

    monkeypatch.setattr(Rollout, "play", fails_when_it_is_ended)

    async def run() -> None:
        async with streaming(chat, engine, ["late", *["win"] * 30], recipe()) as one:
            for step in range(4):
                await one.published(step)
                batch = await one.batch(step)
            assert batch.account is not None
            assert batch.account.dropped == {"stale": 1}
            assert batch.episodes == 4

    asyncio.run(run())


def test_without_a_lag_nobody_tells_of_weights(chat: ChatTokens, engine: StubEngine) -> None:
    async def run() -> None:
        async with streaming(chat, engine, ["win"] * 40, recipe("rollout.max_lag=0")) as one:
            with pytest.raises(RolloutServiceError, match="max_lag is 0"):
                await one.published(0)
            assert (await one.batch(0)).account is None

    asyncio.run(run())


# The service


@pytest.fixture
def served(chat: ChatTokens, engine: StubEngine) -> Iterator[tuple[StubEngine, str]]:
    """The engine, and the address of a driver that streams from it."""
    gates: dict[str, asyncio.Event] = {}
    config, waits, turns = limited(2, 50, 500, concurrency=64)
    make = partial(OneTurn, gates=gates)

    @asynccontextmanager
    async def opened() -> AsyncIterator[RolloutService]:
        rollout = Rollout(Fleet([engine.url]), TOKEN, chat, make, config, waits, max_turns=turns, seed=7)
        async with rollout as connected:
            driver = RolloutService(recipe().service_config(), InOrder(["win"] * 40), connected)  # type: ignore[arg-type]
            yield driver
            await driver.close()

    port = free_port()
    with serving(application(opened(), TOKEN), port) as thread:
        yield engine, f"http://127.0.0.1:{port}"
    assert not thread.is_alive(), "a stream that is left in the middle ends with its service"
    wait_for(lambda: engine.in_flight == 0)


def test_the_stream_goes_on_for_a_client_that_has_gone(served: tuple[StubEngine, str]) -> None:
    """And for one whose request another took the place of."""
    engine, url = served
    engine.delay = 2.0
    RolloutServiceClient(url, TOKEN, timeout=30.0).published(0, None)
    with pytest.raises(RolloutServiceClientError, match="ReadTimeout"):
        RolloutServiceClient(url, TOKEN, timeout=0.5).rollout(0)
    batch = Batch.from_bytes(RolloutServiceClient(url, TOKEN, timeout=30.0).rollout(0))
    assert batch.episodes == 4
    assert (len(engine.bodies), engine.cancelled) == (8, 0)
    engine.delay = 60.0
    RolloutServiceClient(url, TOKEN, timeout=30.0).published(1, batch.account)
    wait_for(lambda: engine.in_flight == 4)


def test_no_full_collection_while_the_stream_plays(served: tuple[StubEngine, str]) -> None:
    """It would visit every token of every episode, with the event loop held."""
    engine, url = served
    client = RolloutServiceClient(url, TOKEN, timeout=30.0)
    engine.delay = 1.0
    client.published(0, None)
    wait_for(lambda: engine.in_flight > 0)
    begun = gc.get_stats()[2]["collections"]
    client.rollout(0)
    assert gc.get_stats()[2]["collections"] == begun


def test_episodes_that_are_over_leave_nothing_for_a_full_collection(chat: ChatTokens, engine: StubEngine) -> None:
    """So none is missed in a stream that never rests, however long it goes on."""

    def episodes() -> int:
        return sum(isinstance(found, Episode) for found in gc.get_objects())

    async def run() -> int:
        async with streaming(chat, engine, ["win"] * 80, recipe()) as one:
            for step in range(5):
                await one.published(step)
                await one.batch(step)
            await until(lambda: one.stream.at_rest)
            return episodes()

    gc.collect()
    before = episodes()
    gc.disable()
    try:
        alive = asyncio.run(run()) - before
    finally:
        gc.enable()
    played = len(engine.bodies)
    assert alive <= 16, "the batch that was taken last, and what is ready for the next"
    assert played >= 20


def test_nobody_tells_of_weights_without_the_token(served: tuple[StubEngine, str]) -> None:
    engine, url = served
    body = {"account": None}
    assert httpx.post(f"{url}/published/0", json=body, trust_env=False).status_code == 401
    assert engine.bodies == []
    client = RolloutServiceClient(url, TOKEN, timeout=30.0)
    client.published(3, None)
    with pytest.raises(RolloutServiceClientError, match="version 2 was published after version 3"):
        client.published(2, None)
