"""Which tokens of an episode are the policy's own, turn by turn, with a policy that says what the test wants."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_empg.common.limits import LimitsConfig
from megatron_empg.environments.asking import abandon_what_was_left_behind
from megatron_empg.environments.base import Opening, StepResult, Task
from megatron_empg.environments.blocking import in_thread
from megatron_empg.environments.config import EnvironmentConfig
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.client import Generation, Sampling, VersionSpan
from megatron_empg.rollout.config import RolloutConfig
from megatron_empg.rollout.episode import EngineFailed, Episode, run_episode, state_number
from megatron_empg.rollout.text_tokens import TextTokens
from megatron_empg.rollout.token_bound import TokenBound
from tests.support.limited import Limited, limited

TASK = Task("t", [{"role": "user", "content": "the capital of Peru"}], {})


@dataclass
class ScriptedPolicy:
    """Answers as an engine does; every turn's log-probs are its own number."""

    turns: list[list[int]]
    end_of_turn: int
    seen: list[tuple[list[int], int, int]] = field(default_factory=list)

    async def generate(self, prompt: list[int], sampling: Sampling, *, max_tokens: int, seed: int) -> Generation:
        turn = len(self.seen)
        self.seen.append((list(prompt), max_tokens, seed))
        tokens = self.turns[turn][:max_tokens]
        finish = "stop" if tokens[-1] == self.end_of_turn else "length"
        return Generation(tokens, [-1.0 - turn] * len(tokens), finish, [VersionSpan(7, 0, len(tokens))])


class Begun:
    """An environment that has nothing to begin or to let go of."""

    async def reset(self) -> Opening:
        return Opening()

    async def close(self) -> None:
        pass


class Echo(Begun):
    """Observes what was said; "answer" ends the episode with reward 1."""

    async def step(self, action: str) -> StepResult:
        if action.startswith("answer"):
            return StepResult(None, True, 1.0)
        return StepResult(f"seen {action}", False)


def encode(chat: ChatTokens, text: str) -> list[int]:
    return chat._tokenizer(text, add_special_tokens=False)["input_ids"]


def play(
    chat: ChatTokens,
    turns: list[list[int]],
    limits: Limited,
    environment: Callable[[], Any] = Echo,
    task: Task = TASK,
) -> tuple[Episode, ScriptedPolicy]:
    policy = ScriptedPolicy(turns, chat.end_of_turn)
    engine: Any = policy
    episode = asyncio.run(
        run_episode(engine, chat, environment, task, Sampling(1.0), *limits, lambda turn: 100 + turn)
    )
    return episode, policy


def test_a_cut_turn_gets_its_end_from_the_template(chat: ChatTokens) -> None:
    """The end token it did not sample is in the tokens, for the next turn to read, and not its own."""
    ended = [*encode(chat, "search Peru"), chat.end_of_turn]
    rambling = encode(chat, "search search search search")
    answer = [*encode(chat, "answer Lima"), chat.end_of_turn]
    limit = len(rambling) - 1
    assert limit >= len(ended), "only the second turn is to be cut"
    episode, policy = play(chat, [ended, rambling, answer], limited(4, limit, 500))
    cut = rambling[:limit]
    assert [turn.finish for turn in episode.turns] == ["stop", "length", "stop"]
    assert [turn.cut for turn in episode.turns] == [False, True, False]
    own = [episode.tokens[turn.start : turn.end] for turn in episode.turns]
    assert own == [ended, cut, answer]
    assert episode.tokens[episode.turns[1].end] == chat.end_of_turn, "the template's, right behind the cut turn"
    assert episode.logprobs == [-1.0] * len(ended) + [-2.0] * len(cut) + [-3.0] * len(answer)
    conversation = [*TASK.prompt]
    for turn in (ended, cut):
        said = chat.text(turn)
        conversation += [{"role": "assistant", "content": said}, {"role": "user", "content": f"seen {said}"}]
    assert policy.seen[2][0] == chat.prompt(conversation), "the policy reads what the template renders"
    assert (episode.outcome, episode.reward, episode.token_drift) == ("success", 1.0, 0)


def test_a_turn_cut_by_the_episodes_length_is_the_last(chat: ChatTokens) -> None:
    rambling = encode(chat, "search search search search")
    room = len(rambling) - 2
    limits = limited(4, 50, len(chat.prompt(TASK.prompt)) + room)
    episode, policy = play(chat, [rambling], limits)
    assert episode.tokens[episode.turns[0].start : episode.turns[0].end] == rambling[:room]
    assert len(episode.tokens) == limits.rollout.max_episode_tokens
    assert policy.seen[0][1] == room
    assert (episode.outcome, episode.reward) == ("truncated", 0.0)


def test_the_last_turn_is_not_followed_by_anything(chat: ChatTokens) -> None:
    turn = [*encode(chat, "search Peru"), chat.end_of_turn]
    episode, policy = play(chat, [turn, turn, turn], limited(2, 50, 500))
    assert len(episode.turns) == 2
    assert episode.turns[-1].end == len(episode.tokens)
    assert [seed for _, _, seed in policy.seen] == [100, 101]
    assert episode.outcome == "truncated"
    assert episode.policy_versions == (7, 7)


class Pages(Begun):
    """Answers with the given pages in turn, each step worth a reward, and ends after the last."""

    def __init__(self, pages: list[str], rewards: list[float] | None = None) -> None:
        self.pages = list(pages)
        self.rewards = list(rewards or [0.0] * (len(pages) + 1))

    async def step(self, action: str) -> StepResult:
        reward = self.rewards.pop(0)
        if not self.pages:
            return StepResult(None, True, reward)
        return StepResult(self.pages.pop(0), False, reward)


@settings(max_examples=150, deadline=None)
@given(
    pages=st.lists(st.one_of(st.text(max_size=80), st.integers(0, 300).map("page ".__mul__)), max_size=5),
    lengths=st.lists(st.integers(0, 12), min_size=6, max_size=6),
    turn_tokens=st.integers(1, 12),
    room=st.integers(-2, 200),
)
def test_an_episode_never_has_more_tokens_than_its_limit(
    chat: ChatTokens, pages: list[str], lengths: list[int], turn_tokens: int, room: int
) -> None:
    """Nor does what the policy reads, and it ends with a token of the policy's own."""
    prompt = len(chat.prompt(TASK.prompt))
    word = encode(chat, "search")[0]
    turns = [[*[word] * length, chat.end_of_turn] for length in lengths]
    limits = limited(6, turn_tokens, prompt + room)
    episode, policy = play(chat, turns, limits, lambda: Pages(pages))
    assert len(episode.tokens) <= limits.rollout.max_episode_tokens
    assert all(len(read) + most <= limits.rollout.max_episode_tokens for read, most, _ in policy.seen)
    if room < 1:
        assert episode.outcome == "error"
        assert episode.error is not None
        for part in (
            "PromptTooLong",
            "task 't'",
            f"{prompt} tokens",
            f"{limits.rollout.max_episode_tokens} of",
            "max_episode",
        ):
            assert part in episode.error
        return
    assert episode.outcome in ("success", "failure", "truncated")
    assert episode.turns[-1].end == len(episode.tokens), "cut after the last own token"
    if room >= 200 and sum(map(len, pages)) < 60:
        assert episode.outcome != "truncated" or any(len(turn) > turn_tokens for turn in turns)


def test_an_observation_that_does_not_fit_ends_the_episode(chat: ChatTokens) -> None:
    turn = [*encode(chat, "search Peru"), chat.end_of_turn]
    episode, policy = play(chat, [turn, turn], limited(4, 50, 100), lambda: Pages(["long " * 1000]))
    assert len(policy.seen) == 1
    assert episode.tokens == chat.prompt(TASK.prompt) + turn
    assert (episode.outcome, episode.reward, episode.error) == ("truncated", 0.0, None)
    assert episode.turns[0].observation == "long " * 1000


@pytest.fixture
def longest_cut(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Characters of the texts that were cut into tokens."""
    seen: list[int] = []
    encode_text = TextTokens.encode_text

    def noted(self: TextTokens, text: str, **settings: bool) -> list[int]:
        seen.append(len(text))
        return encode_text(self, text, **settings)

    monkeypatch.setattr(TextTokens, "encode_text", noted)
    return seen


@pytest.mark.parametrize("page", ["long " * 20_000_000, "東" * 10_000_000, " " * 10_000_000 + "x"], ids=len)
def test_a_huge_observation_ends_the_episode_without_being_cut_into_tokens(
    chat: ChatTokens, longest_cut: list[int], page: str
) -> None:
    turn = [*encode(chat, "search Peru"), chat.end_of_turn]
    episode, policy = play(chat, [turn, turn], limited(4, 50, 16384), lambda: Pages([page]))
    assert (len(policy.seen), episode.tokens) == (1, chat.prompt(TASK.prompt) + turn)
    assert (episode.outcome, episode.reward, episode.error) == ("truncated", 0.0, None)
    assert max(longest_cut) < 1000


def test_a_huge_prompt_is_an_error_without_being_cut_into_tokens(chat: ChatTokens, longest_cut: list[int]) -> None:
    task = Task("t", [{"role": "user", "content": "long " * 2_000_000}], {})
    episode, policy = play(chat, [], limited(4, 50, 16384), task=task)
    assert (policy.seen, episode.outcome, episode.tokens) == ([], "error", [])
    assert episode.error is not None
    assert "the prompt of task 't' has at least " in episode.error
    assert max(longest_cut, default=0) < 1000


@pytest.mark.parametrize("cut", [False, True])
def test_episodes_are_those_that_cutting_everything_gives(
    chat: ChatTokens, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every length of a page up to where it no longer has room, and far beyond."""
    turn = encode(chat, "search Peru") if cut else [*encode(chat, "search Peru"), chat.end_of_turn]
    limits = limited(3, len(turn), 120)

    def episodes() -> list[Episode]:
        pages = [piece * length for piece in ("long ", "é") for length in (*range(60), 500)]
        return [play(chat, [turn] * 3, limits, lambda page=page: Pages([page, page]))[0] for page in pages]

    found = episodes()
    monkeypatch.setattr(TokenBound, "fewest", lambda self, text: 0)
    assert found == episodes()
    assert {len(episode.turns) for episode in found} == {1, 2, 3}


def test_an_engine_that_samples_more_than_it_may_has_failed(chat: ChatTokens) -> None:
    class Garrulous(ScriptedPolicy):
        async def generate(self, prompt, sampling, *, max_tokens, seed):  # type: ignore[no-untyped-def]
            return Generation(self.turns[0], [-1.0] * len(self.turns[0]), "length", [])

    engine: Any = Garrulous([encode(chat, "search Peru search Peru")], chat.end_of_turn)
    with pytest.raises(EngineFailed, match="where 1 to 2 were asked"):
        asyncio.run(run_episode(engine, chat, Echo, TASK, Sampling(1.0), *limited(2, 2, 500), lambda turn: 0))


@pytest.mark.parametrize(
    ("turns", "outcome", "reward"), [(3, "success", 1.25), (2, "truncated", 1.0)], ids=["ended", "truncated"]
)
def test_rewards_are_summed_over_the_turns(chat: ChatTokens, turns: int, outcome: str, reward: float) -> None:
    turn = [*encode(chat, "search"), chat.end_of_turn]
    pages = Pages(["a", "b"], [0.5, 0.5, 0.25])
    episode, _ = play(chat, [turn] * turns, limited(turns, 50, 500), lambda: pages)
    assert (episode.outcome, episode.reward) == (outcome, reward)
    assert [turn.reward for turn in episode.turns] == [0.5, 0.5, 0.25][:turns]


def test_a_turn_that_the_environment_never_saw_has_no_reward(chat: ChatTokens) -> None:
    """The episode's limit cut it, so that nothing could follow."""
    turn, rambling = [*encode(chat, "search"), chat.end_of_turn], encode(chat, "search search search search")
    room = len(turn) + len(chat.between_turns("a", cut=False)) + 3
    limits = limited(4, 50, len(chat.prompt(TASK.prompt)) + room)
    episode, _ = play(chat, [turn, rambling], limits, lambda: Pages(["a"], [0.5, 9.0]))
    assert episode.outcome == "truncated"
    assert [turn.reward for turn in episode.turns] == [0.5, 0.0]
    assert [turn.cut for turn in episode.turns] == [False, True]


class Rooms(Begun):
    """A state is the room the agent stands in, whatever it is told there."""

    def __init__(self, told: list[str], rooms: list[str | None]) -> None:
        self.said = list(zip(told, rooms, strict=True))

    async def step(self, action: str) -> StepResult:
        if not self.said:
            return StepResult(None, True, 1.0)
        observation, room = self.said.pop(0)
        return StepResult(observation, False, anchor=room)


def test_a_turn_is_anchored_in_the_state_it_acted_in(chat: ChatTokens) -> None:
    turn = [*encode(chat, "search"), chat.end_of_turn]

    def anchors(told: list[str], rooms: list[str | None], task: Task = TASK) -> list[int]:
        turns = [turn] * (len(told) + 1)
        episode, _ = play(chat, turns, limited(9, 50, 900), lambda: Rooms(told, rooms), task=task)
        assert episode.outcome == "success"
        return [each.anchor for each in episode.turns]

    named = anchors(["a", "b", "a"], ["hall", "cellar", "hall"])
    assert named[1] == named[3] == state_number("hall")
    assert len(set(named)) == 3, "the first turn's is the prompt"
    assert anchors(["a", "b", "a"], [None] * 3)[1:] == [state_number(text) for text in "aba"]
    assert anchors(["a"], [None])[0] == named[0], "the same task begins in the same state"
    other = Task("t", [{"role": "user", "content": "the capital of Chile"}], {})
    assert anchors(["a"], [None], other)[0] != named[0]


def test_the_number_of_a_state_is_the_same_on_every_machine() -> None:
    assert state_number("") == -5426141060434712860
    assert state_number("found lima \ud800 東京") != state_number("found lima 東京")
    assert all(-(2**63) <= state_number(str(number)) < 2**63 for number in range(100))
    assert {state_number(str(number)) < 0 for number in range(100)} == {True, False}


def test_the_gold_turn_is_what_the_policy_would_have_to_write(chat: ChatTokens) -> None:
    answer = [*encode(chat, "answer Lima"), chat.end_of_turn]
    knows = Task("t", TASK.prompt, {}, gold="answer Lima")
    episode, _ = play(chat, [answer], limited(2, 50, 500), task=knows)
    assert episode.gold == chat.turn("answer Lima") == answer
    episode, _ = play(chat, [answer], limited(2, 50, 500))
    assert episode.gold == []


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_costs_its_episode(chat: ChatTokens, reward: float) -> None:
    """In a batch it would cost them all."""
    turn = [*encode(chat, "search"), chat.end_of_turn]
    episode, _ = play(chat, [turn] * 2, limited(4, 50, 500), lambda: Pages(["a"], [0.5, reward]))
    assert (episode.outcome, episode.reward) == ("error", 0.0)
    assert episode.error == f"InvalidAnswer: step returned a reward of {reward}, which is not a finite number"


def test_the_success_of_an_episode_is_its_last_steps(chat: ChatTokens) -> None:
    turn = [*encode(chat, "search"), chat.end_of_turn]
    episode, _ = play(chat, [turn] * 2, limited(4, 50, 500), lambda: Pages(["a"], [0.5, 0.0]))
    assert (episode.outcome, episode.reward) == ("failure", 0.5)


def test_a_measurement_cannot_change_an_episode(chat: ChatTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise ValueError("empty assistant message")

    monkeypatch.setattr(chat, "drift", refuse)
    answer = [*encode(chat, "answer Lima"), chat.end_of_turn]
    episode, _ = play(chat, [answer], limited(2, 50, 500))
    assert (episode.outcome, episode.reward, episode.error) == ("success", 1.0, None)
    assert episode.token_drift is None


def test_an_environment_that_cannot_be_made_is_an_error_of_its_episode(chat: ChatTokens) -> None:
    def fail() -> None:
        raise ConnectionError("the simulator did not reset")

    episode, policy = play(chat, [], limited(2, 50, 500), fail)
    assert (episode.outcome, episode.error) == ("error", "ConnectionError: the simulator did not reset")
    assert not policy.seen


@pytest.mark.parametrize("hangs", ["reset", "step"])
@pytest.mark.parametrize("in_a_thread", [False, True], ids=["waits", "blocks a thread"])
def test_a_hanging_environment_costs_its_episode(chat: ChatTokens, hangs: str, in_a_thread: bool) -> None:
    over = threading.Event()
    closed: list[bool] = []

    async def hang() -> None:
        if in_a_thread:
            await in_thread(over.wait, 30)
        await asyncio.sleep(30)

    class Hanging(Echo):
        async def reset(self) -> Opening:
            if hangs == "reset":
                await hang()
            return Opening()

        async def step(self, action: str) -> StepResult:
            await hang()
            return await super().step(action)

        async def close(self) -> None:
            closed.append(True)

    answer = [*encode(chat, "answer Lima"), chat.end_of_turn]
    limits = limited(2, 50, 500, environment=0.2)
    episode, _ = play(chat, [answer], limits, Hanging)
    over.set()
    assert episode.outcome == "error"
    assert episode.error is not None
    assert "EnvironmentTimeout" in episode.error
    assert "0.2 s (limits.environment_timeout)" in episode.error
    assert closed == [True]


def test_a_wait_for_its_place_is_no_part_of_an_environments_time(chat: ChatTokens) -> None:
    admitted: list[str] = []

    class Queued(Echo):
        async def admitted(self) -> None:
            await asyncio.sleep(1.5)
            admitted.append("admitted")

        async def reset(self) -> Opening:
            admitted.append("reset")
            return Opening()

    answer = [*encode(chat, "answer Lima"), chat.end_of_turn]
    episode, _ = play(chat, [answer], limited(2, 50, 500, environment=1.0), Queued)
    assert (episode.outcome, episode.error) == ("success", None)
    assert admitted == ["admitted", "reset"]


def test_a_time_out_of_the_environments_own_keeps_its_name(chat: ChatTokens) -> None:
    class Slow(Begun):
        async def step(self, action: str) -> StepResult:
            raise TimeoutError("the simulator's own")

    answer = [*encode(chat, "answer Lima"), chat.end_of_turn]
    episode, _ = play(chat, [answer], limited(2, 50, 500, environment=20.0), Slow)
    assert episode.error == "TimeoutError: the simulator's own"


def test_what_an_environment_tells_at_its_beginning_follows_the_prompt(chat: ChatTokens) -> None:
    class Kitchen(Echo):
        async def reset(self) -> Opening:
            return Opening([{"role": "user", "content": "you are in the kitchen"}], anchor="kitchen")

    answer = [*encode(chat, "answer Lima"), chat.end_of_turn]
    episode, _ = play(chat, [answer], limited(2, 50, 500), Kitchen)
    told = [*TASK.prompt, {"role": "user", "content": "you are in the kitchen"}]
    assert episode.tokens[: episode.prompt_length] == chat.prompt(told)  # type: ignore[arg-type]
    assert episode.turns[0].anchor == state_number("kitchen")
    assert episode.outcome == "success"


@pytest.mark.parametrize("fails", ["reset", "step", "close"])
def test_an_environment_is_closed_whatever_it_meets(chat: ChatTokens, fails: str) -> None:
    closed: list[bool] = []

    class Failing(Echo):
        async def reset(self) -> Opening:
            if fails == "reset":
                raise OSError("no game")
            return Opening()

        async def step(self, action: str) -> StepResult:
            if fails == "step":
                raise OSError("no game")
            return await super().step(action)

        async def close(self) -> None:
            closed.append(True)
            raise OSError("not closed")

    answer = [*encode(chat, "answer Lima"), chat.end_of_turn]
    episode, _ = play(chat, [answer], limited(2, 50, 500), Failing)
    assert closed == [True]
    assert episode.outcome == ("success" if fails == "close" else "error")


def test_a_cancelled_episode_closes_its_environment(chat: ChatTokens) -> None:
    closed: list[bool] = []

    class Waiting(Echo):
        async def step(self, action: str) -> StepResult:
            await asyncio.sleep(30)
            return await super().step(action)

        async def close(self) -> None:
            closed.append(True)

    async def cancelled() -> None:
        policy: Any = ScriptedPolicy([[*encode(chat, "answer"), chat.end_of_turn]], chat.end_of_turn)
        playing = asyncio.ensure_future(
            run_episode(policy, chat, Waiting, TASK, Sampling(1.0), *limited(2, 50, 500), lambda turn: 0)
        )
        while not policy.seen:
            await asyncio.sleep(0.01)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing

    asyncio.run(cancelled())
    assert closed == [True]


def test_a_turn_that_takes_too_long_is_the_engines_failure(chat: ChatTokens) -> None:
    class Frozen(ScriptedPolicy):
        url = "http://frozen"

        async def generate(self, prompt, sampling, *, max_tokens, seed):  # type: ignore[no-untyped-def]
            await asyncio.sleep(30)

    engine: Any = Frozen([], chat.end_of_turn)
    limits = limited(2, 50, 500, turn=0.1)
    with pytest.raises(EngineFailed, match=r"limits\.turn_timeout") as caught:
        asyncio.run(run_episode(engine, chat, Echo, TASK, Sampling(1.0), *limits, lambda turn: 0))
    assert (caught.value.episode.outcome, caught.value.episode.engine) == ("error", "http://frozen")


def test_limits_must_leave_something() -> None:
    needed = {"groups": 1, "group_size": 2}
    for config, keys in (
        (EnvironmentConfig, {"name": "deep_search", "max_turns": 0}),
        (RolloutConfig, {**needed, "max_turn_tokens": 0}),
        (RolloutConfig, {**needed, "max_turn_tokens": 1, "max_episode_tokens": 0}),
        (LimitsConfig, {"turn_timeout": 0.0}),
        (LimitsConfig, {"environment_timeout": float("nan")}),
    ):
        with pytest.raises(ValueError, match=r"Input should be (greater than|a finite number)"):
            config(**keys)


def test_long_texts_do_not_hold_up_the_event_loop(chat: ChatTokens) -> None:
    """No callback of the loop takes 50 ms of its thread's time with a page of 100,000 characters."""
    longest = 0.0
    run = asyncio.events.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        nonlocal longest
        started = time.thread_time()
        run(handle)
        longest = max(longest, time.thread_time() - started)

    page = "the capital of Peru is Lima. " * 3500
    assert len(page) > 100_000
    turn = [*encode(chat, "search Peru"), chat.end_of_turn]
    task = Task("t", [{"role": "user", "content": page}], {})
    pages = [page, "short", page]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.events.Handle, "_run", timed)
        limits = limited(4, 50, 400_000)
        episode, _ = play(chat, [turn] * 4, limits, lambda: Pages(pages), task=task)
    assert episode.error is None
    assert len(episode.tokens) > 60_000
    assert episode.token_drift == 0
    assert 0 < longest < 0.05


async def _raise_cancelled() -> None:
    raise asyncio.CancelledError


async def _cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def _leave() -> None:
    raise SystemExit(0)


async def _raise_base() -> None:
    raise BaseException("base")


@pytest.mark.parametrize("where", ["reset", "step"])
@pytest.mark.parametrize(
    ("deed", "said"),
    [
        (_raise_cancelled, "cancelled its own {}"),
        (_cancel_itself, "cancelled its own {}"),
        (_leave, "raised SystemExit in {}: 0"),
        (_raise_base, "raised BaseException in {}: base"),
    ],
)
def test_what_an_environment_does_to_the_event_loop_costs_its_episode_alone(
    chat: ChatTokens, where: str, deed: Callable[[], Any], said: str
) -> None:
    class Hostile(Echo):
        async def reset(self) -> Opening:
            if where == "reset":
                await deed()
            return Opening()

        async def step(self, action: str) -> StepResult:
            await deed()
            return await super().step(action)

        async def close(self) -> None:
            await deed()

    answer = [*encode(chat, "answer Lima"), chat.end_of_turn]
    episode, _ = play(chat, [answer], limited(2, 50, 500, environment=20.0), Hostile)
    assert episode.outcome == "error"
    assert episode.error == "EnvironmentMisbehaved: the environment " + said.format(where)


@pytest.mark.parametrize("deed", [_raise_cancelled, _cancel_itself, _leave, _raise_base])
def test_whatever_a_close_does_the_episode_stays_what_it_is(chat: ChatTokens, deed: Callable[[], Any]) -> None:
    class Hostile(Echo):
        async def close(self) -> None:
            await deed()

    answer = [*encode(chat, "answer Lima"), chat.end_of_turn]
    episode, _ = play(chat, [answer], limited(2, 50, 500), Hostile)
    assert (episode.outcome, episode.error) == ("success", None)


def test_an_environment_that_leaves_while_it_is_made_costs_its_episode(chat: ChatTokens) -> None:
    def leave() -> None:
        raise SystemExit(0)

    episode, _ = play(chat, [], limited(2, 50, 500), leave)
    assert episode.error == "EnvironmentMisbehaved: the environment raised SystemExit in make: 0"


def test_a_result_of_wrong_values_costs_its_episode_with_the_fault(chat: ChatTokens) -> None:
    class Wrong(Begun):
        async def step(self, action: str) -> StepResult:
            return StepResult(None, True, reward=True)

    answer = [*encode(chat, "answer Lima"), chat.end_of_turn]
    episode, _ = play(chat, [answer], limited(2, 50, 500), Wrong)
    assert episode.error == "InvalidAnswer: step returned a reward of True, which is not a finite number"


def test_a_caller_that_is_cancelled_stays_cancelled(chat: ChatTokens) -> None:
    class Waiting(Echo):
        async def step(self, action: str) -> StepResult:
            begun.set()
            await asyncio.sleep(60)
            return await super().step(action)

    async def cancelled() -> bool:
        engine: Any = ScriptedPolicy([[*encode(chat, "answer Lima"), chat.end_of_turn]], chat.end_of_turn)
        limits = limited(2, 50, 500)
        player = asyncio.ensure_future(
            run_episode(engine, chat, Waiting, TASK, Sampling(1.0), *limits, lambda turn: turn)
        )
        await begun.wait()
        player.cancel()
        await asyncio.wait([player])
        return player.cancelled()

    begun = asyncio.Event()
    assert asyncio.run(cancelled())


def test_a_close_that_catches_its_cancellation_holds_nothing_up(
    chat: ChatTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_empg.rollout.episode.SECONDS_TO_CLOSE", 0.1)

    class Clinging(Echo):
        async def close(self) -> None:
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)

    async def run() -> Episode:
        engine: Any = ScriptedPolicy([[*encode(chat, "answer Lima"), chat.end_of_turn]], chat.end_of_turn)
        limits = limited(2, 50, 500)
        episode = await run_episode(engine, chat, Clinging, TASK, Sampling(1.0), *limits, lambda turn: turn)
        await abandon_what_was_left_behind(0.1)
        return episode

    assert asyncio.run(run()).outcome == "success"


# Times


def test_times_of_turns_lie_in_order_and_apart(chat: ChatTokens) -> None:
    class Slow(Echo):
        async def reset(self) -> Opening:
            await asyncio.sleep(0.02)
            return Opening()

        async def step(self, action: str) -> StepResult:
            await asyncio.sleep(0.01)
            return await super().step(action)

    turns = [[*encode(chat, said), chat.end_of_turn] for said in ("search Peru", "answer Lima")]
    before = time.monotonic()
    episode, _ = play(chat, turns, limited(4, 50, 500), Slow)
    assert episode.opening is not None
    assert episode.whole is not None
    spans = [episode.opening]
    for turn in episode.turns:
        assert turn.generation is not None
        assert turn.environment is not None
        assert turn.environment.seconds >= 0.01
        spans += [turn.generation, turn.environment]
    assert episode.opening.seconds >= 0.02
    ends = [before, episode.whole.start]
    for span in spans:
        ends += [span.start, span.end]
    ends += [episode.whole.end, time.monotonic()]
    assert ends == sorted(ends)


def test_an_episode_that_fails_says_how_long_it_took(chat: ChatTokens) -> None:
    class Breaks(Begun):
        async def step(self, action: str) -> StepResult:
            raise OSError("the tool is gone")

    episode, _ = play(chat, [[*encode(chat, "search"), chat.end_of_turn]], limited(4, 50, 500), Breaks)
    assert episode.outcome == "error"
    assert episode.whole is not None
    (turn,) = episode.turns
    assert turn.generation is not None
    assert turn.environment is None
