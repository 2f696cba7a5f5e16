"""Many episodes at once: what fails, hangs or comes late costs an episode, and nothing goes on unasked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from megatron_empg.environments import blocking
from megatron_empg.environments.base import Environment, Opening, StepResult, Task
from megatron_empg.environments.blocking import PatientThreads, in_thread
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.episode import Episode
from megatron_empg.rollout.episodes import Group, Rollout
from megatron_empg.rollout.fleet import EngineState, Fleet
from tests.support.limited import limited
from tests.support.serving import wait_for
from tests.support.stub_engine import StubEngine

TOKEN = "0123456789abcdef"


class MayHang:
    """Every turn is an answer; with "hangs" in the task it never sees the end of it."""

    def __init__(self, task: Task, over: threading.Event) -> None:
        self.task, self.over = task, over

    async def reset(self) -> Opening:
        return Opening()

    async def step(self, action: str) -> StepResult:
        if self.task.payload.get("hangs"):
            await in_thread(self.over.wait, 60)
        return StepResult(None, True, 1.0)

    async def close(self) -> None:
        pass


@pytest.fixture
def over():
    """Set when the test ends, so that the threads of hanging environments end with it."""
    event = threading.Event()
    yield event
    event.set()


def groups(count: int, samples: int = 1, **payload: Any) -> list[Group]:
    tasks = [Task(f"q{i}", [{"role": "user", "content": "the capital of Peru"}], payload) for i in range(count)]
    return [Group(task, i, range(samples)) for i, task in enumerate(tasks)]


def play(
    chat: ChatTokens,
    urls: Sequence[str],
    batches: Sequence[Sequence[Group]],
    *,
    make: Callable[[Task], Environment],
    fleet: Fleet | None = None,
    concurrency: int = 64,
    request: float = 30.0,
    episode: float | None = None,
    environment: float | None = None,
    timeout: float | None = None,
    cancel_when: Callable[[], bool] | None = None,
) -> list[list[Episode]]:
    """The episodes of each batch, played one after the other."""
    seconds = {"environment": environment, "request": request, "episode": episode}
    config, waits, turns = limited(3, 50, 500, concurrency=concurrency, **seconds)

    async def run() -> list[list[Episode]]:
        async with Rollout(
            fleet or Fleet(urls), TOKEN, chat, make, config, waits, max_turns=turns, seed=7
        ) as rollout:
            played = []
            for batch in batches:
                task = asyncio.create_task(rollout.run_group_batch(batch, 0, timeout=timeout))
                while cancel_when is not None and not task.done():
                    await asyncio.sleep(0.01)
                    if cancel_when():
                        task.cancel()
                played.append(await task)
            return played

    return asyncio.run(asyncio.wait_for(run(), 60))


def answer(chat: ChatTokens) -> Callable[[dict[str, Any]], list[int]]:
    tokens = [*chat._tokenizer("answer Lima", add_special_tokens=False)["input_ids"], chat.end_of_turn]
    return lambda body: tokens


def test_a_frozen_engine_costs_no_episode_and_is_not_asked_again(chat: ChatTokens, over: threading.Event) -> None:
    """It still says that it is healthy, as a server does whose GPU hangs."""
    with StubEngine(answer(chat)) as sound, StubEngine(answer(chat), frozen=True) as frozen:
        fleet = Fleet([frozen.url, sound.url])
        make = lambda task: MayHang(task, over)  # noqa: E731
        first, second = play(chat, fleet.engines, [groups(8), groups(8)], make=make, fleet=fleet, request=0.5)
        assert {e.outcome for e in first + second} == {"success"}
        assert len({e.engine for e in first + second}) == 1
        assert fleet.engines[frozen.url].state is EngineState.DEAD
        assert len(frozen.bodies) == 4, "half of the first batch, none of the second"
        wait_for(lambda: frozen.in_flight == 0)


def test_an_engine_is_tried_again_only_where_there_is_no_other(chat: ChatTokens) -> None:
    fleet = Fleet(["a", "b"])
    fleet.engines["b"].load = 9
    assert fleet.assign(avoid=["a"]) == "b"
    fleet.declare_dead("b")
    assert fleet.assign(avoid=["a"]) == "a"


def test_a_hanging_environment_costs_its_episode_alone(
    chat: ChatTokens, over: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More hang than there are episodes at once, and the next batch still plays."""
    threads = PatientThreads()
    monkeypatch.setattr(blocking, "CALLS", threads)
    with StubEngine(answer(chat)) as engine:
        make = lambda task: MayHang(task, over)  # noqa: E731
        batches = [groups(8, hangs=True), groups(2)]
        hung, sound = play(chat, [engine.url], batches, make=make, concurrency=4, environment=0.3)
    assert {e.outcome for e in hung} == {"error"}
    assert all("limits.environment_timeout" in (e.error or "") for e in hung)
    assert {e.outcome for e in sound} == {"success"}
    assert threads.running == 8
    over.set()
    wait_for(lambda: threads.running == 0)


def test_what_is_not_over_when_the_round_ends_is_cancelled_and_says_so(
    chat: ChatTokens, over: threading.Event
) -> None:
    with StubEngine(answer(chat), delay=30.0) as engine:
        make = lambda task: MayHang(task, over)  # noqa: E731
        (episodes,) = play(chat, [engine.url], [groups(6)], make=make, concurrency=4, timeout=2.0)
        assert [e.outcome for e in episodes] == ["error"] * 6
        assert all("not over when the 2.0 s" in (e.error or "") for e in episodes[:4])
        assert all("not begun when the 2.0 s" in (e.error or "") for e in episodes[4:])
        assert all("limits.round_timeout" in (e.error or "") for e in episodes)
        wait_for(lambda: engine.in_flight == 0)
        assert engine.cancelled == 4


def test_a_slow_episode_ends_by_its_own_limit(chat: ChatTokens, over: threading.Event) -> None:
    with StubEngine(answer(chat), delay=30.0) as engine:
        make = lambda task: MayHang(task, over)  # noqa: E731
        (episodes,) = play(chat, [engine.url], [groups(2)], make=make, episode=0.3)
        assert all("limits.episode_timeout" in (e.error or "") for e in episodes)
        wait_for(lambda: engine.cancelled == 2)


def test_waiting_for_a_place_is_not_part_of_an_episodes_time(chat: ChatTokens, over: threading.Event) -> None:
    with StubEngine(answer(chat), delay=0.5) as engine:
        make = lambda task: MayHang(task, over)  # noqa: E731
        (episodes,) = play(chat, [engine.url], [groups(6)], make=make, concurrency=1, episode=2.5)
    assert {e.outcome for e in episodes} == {"success"}, "six of half a second each, one after the other"


def test_whoever_cancels_a_batch_cancels_its_requests(chat: ChatTokens, over: threading.Event) -> None:
    with StubEngine(answer(chat), delay=30.0) as engine:
        make = lambda task: MayHang(task, over)  # noqa: E731
        with pytest.raises(asyncio.CancelledError):
            play(chat, [engine.url], [groups(5)], make=make, cancel_when=lambda: engine.in_flight == 5)
        wait_for(lambda: engine.in_flight == 0)
        assert engine.cancelled == 5


def test_an_environment_that_cannot_be_made_costs_its_episode(chat: ChatTokens, over: threading.Event) -> None:
    def make(task: Task) -> Environment:
        if task.id == "q1":
            raise ConnectionError("the simulator did not start")
        return MayHang(task, over)

    with StubEngine(answer(chat)) as engine:
        (episodes,) = play(chat, [engine.url], [groups(3)], make=make)
    assert [e.outcome for e in episodes] == ["success", "error", "success"]
    assert "ConnectionError: the simulator did not start" in (episodes[1].error or "")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("unversioned", "does not say which version of the policy"),
        ("nonsense", "answered what is not a generation"),
        ("null", "answered what is not a generation"),
    ],
)
def test_an_engine_that_answers_something_else_is_named(
    chat: ChatTokens, over: threading.Event, fault: str, says: str
) -> None:
    class Other(StubEngine):
        def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
            answered = super()._answer(body)
            if fault == "null":
                answered["choices"][0]["logprobs"]["content"][0]["logprob"] = None
            return {"choices": []} if fault == "nonsense" else answered

    with Other(answer(chat), version=None) as engine:
        make = lambda task: MayHang(task, over)  # noqa: E731
        (episodes,) = play(chat, [engine.url], [groups(2)], make=make)
        assert all(f"{engine.url} {says}" in (e.error or "") for e in episodes)


def test_an_episode_starts_over_on_an_engine_that_it_has_not_tried(
    chat: ChatTokens, over: threading.Event
) -> None:
    """The first one lives, has nothing else to do, and answers what nobody can use."""
    with StubEngine(answer(chat), version=None) as unfit, StubEngine(answer(chat)) as sound:
        make = lambda task: MayHang(task, over)  # noqa: E731
        [episodes] = play(chat, [unfit.url, sound.url], [groups(4)], make=make, concurrency=1)
        assert [e.outcome for e in episodes] == ["success"] * 4
        assert {e.engine for e in episodes} == {sound.url}
        assert unfit.bodies, "it was asked"
