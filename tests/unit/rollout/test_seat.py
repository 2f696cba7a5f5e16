"""An episode whose engine fails goes on elsewhere with its tokens, or waits; stale weights never serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from megatron_empg.environments.base import Opening, StepResult, Task
from megatron_empg.environments.workers.errors import WorkerDied
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.episode import Episode, LostPart
from megatron_empg.rollout.episodes import Changes, Group, Rollout
from megatron_empg.rollout.fleet import EngineState, Fleet
from megatron_empg.rollout.seat import MOST_LOST, Seat
from tests.support.limited import limited
from tests.support.stub_engine import StubEngine

TOKEN = "0123456789abcdef"
TURNS = 3
Meanwhile = Callable[[Rollout], Awaitable[None]]


class Counting:
    """Goes on for three turns; `opened` counts how often any of them was begun."""

    opened = 0

    def __init__(self, task: Task) -> None:
        self.turns = 0

    async def reset(self) -> Opening:
        Counting.opened += 1
        return Opening()

    async def step(self, action: str) -> StepResult:
        self.turns += 1
        return StepResult(None, True, 1.0) if self.turns == TURNS else StepResult(f"seen {self.turns}", False)

    async def close(self) -> None:
        pass


def by_seed(chat: ChatTokens) -> Callable[[dict[str, Any]], list[int]]:
    """One of two answers, as a request's seed says: the same on every engine."""
    said = [chat._tokenizer(f"answer {word}", add_special_tokens=False)["input_ids"] for word in ("Lima", "Peru")]
    return lambda body: [*said[body["sampling_params"]["seed"] % 2], chat.end_of_turn]


def play(
    chat: ChatTokens,
    fleet: Fleet,
    count: int,
    meanwhile: Meanwhile | None = None,
    make: type[Counting] = Counting,
    timeout: float | None = None,
    **seconds: float,
) -> list[Episode]:
    """That many episodes of one question, while something happens."""
    config, waits, turns = limited(TURNS, 50, 500, concurrency=64, **seconds)
    group = Group(Task("q", [{"role": "user", "content": "the capital of Peru"}], {}), 0, range(count))
    Counting.opened = 0

    async def run() -> list[Episode]:
        async with Rollout(fleet, TOKEN, chat, make, config, waits, max_turns=turns, seed=7) as rollout:
            playing = asyncio.create_task(rollout.run_group_batch([group], 0, timeout=timeout))
            if meanwhile is not None:
                await meanwhile(rollout)
            return await playing

    return asyncio.run(asyncio.wait_for(run(), 60))


def told(*engines: StubEngine, version: int = 3) -> Fleet:
    """A run's fleet, all of which hold these weights."""
    fleet = Fleet([engine.url for engine in engines], told=True)
    fleet.refitted(fleet.engines, version)
    return fleet


def learnt_from(episode: Episode) -> tuple[list[int], list[float], float]:
    return episode.tokens, episode.logprobs, episode.reward


async def until(seen: Callable[[], bool]) -> None:
    while not seen():
        await asyncio.sleep(0.01)


def test_an_episode_whose_engine_dies_goes_on_elsewhere_with_its_tokens_and_its_environment(
    chat: ChatTokens,
) -> None:
    with StubEngine(by_seed(chat), version="3") as one, StubEngine(by_seed(chat), version="3") as two:
        undisturbed = play(chat, told(one, two), 8)
        asked = len(one.bodies) + len(two.bodies)
        one.bodies.clear()
        two.bodies.clear()
        one.delay = two.delay = 0.05

        async def dies(rollout: Rollout) -> None:
            await until(lambda: len(one.bodies) > 4)  # in its episodes' second turns
            one.gone = True

        fleet = told(one, two)
        disturbed = play(chat, fleet, 8, dies)
        assert {episode.outcome for episode in disturbed} == {"success"}
        assert [learnt_from(one) for one in disturbed] == [learnt_from(one) for one in undisturbed]
        assert Counting.opened == 8, "no environment begins anew"
        assert {episode.engine for episode in disturbed} == {two.url}
        assert len(one.bodies) + len(two.bodies) <= asked + 4, "no turn is played twice but those that broke off"
        assert fleet.engines[one.url].state is EngineState.DEAD
        assert [engine.load for engine in fleet.engines.values()] == [0, 0]


def test_an_engine_that_was_started_again_between_two_turns_serves_no_token_of_its_own_weights(
    chat: ChatTokens,
) -> None:
    """Nobody saw it die: it answers, at the same address, and all that differs is the version of its weights."""
    with StubEngine(by_seed(chat), version="3") as one, StubEngine(by_seed(chat), version="3") as two:
        one.delay = two.delay = 0.05

        async def restarted(rollout: Rollout) -> None:
            await until(lambda: len(one.bodies) > 4)
            one.version = "default"

        fleet = told(one, two)
        episodes = play(chat, fleet, 8, restarted)
        assert {episode.outcome for episode in episodes} == {"success"}
        versions = {span.version for e in episodes for turn in e.turns for span in turn.policy_versions}
        assert versions == {3}
        assert fleet.engines[one.url].state is EngineState.STALE
        assert fleet.stale() == [one.url]


@pytest.mark.parametrize("version", ["default", "2"])
def test_older_weights_are_found_in_the_first_answer(chat: ChatTokens, version: str) -> None:
    with StubEngine(by_seed(chat), version=version) as old, StubEngine(by_seed(chat), version="3") as sound:
        fleet = told(old, sound)
        episodes = play(chat, fleet, 4)
        assert {episode.engine for episode in episodes} == {sound.url}
        assert {episode.outcome for episode in episodes} == {"success"}
        assert fleet.stale() == [old.url]


def test_newer_weights_than_the_fleet_was_told_of_are_no_fault(chat: ChatTokens) -> None:
    """In-flight updates: the engine has them before the service is told."""
    with StubEngine(by_seed(chat), version="4") as engine:
        episodes = play(chat, told(engine), 2)
        assert {episode.outcome for episode in episodes} == {"success"}


def test_episodes_wait_for_the_only_engine_and_their_time_stands_still(chat: ChatTokens) -> None:
    """It is away for longer than an episode may take."""
    with StubEngine(by_seed(chat), version="3", delay=0.05) as engine:

        async def away(rollout: Rollout) -> None:
            await until(lambda: len(engine.bodies) > 4)
            engine.gone = True
            await until(lambda: not rollout.fleet.healthy())
            await asyncio.sleep(2.0)
            engine.gone = False
            rollout.fleet.came_back(engine.url, -1)
            assert rollout.fleet.stale() == [engine.url]
            await asyncio.sleep(0.2)
            asked = len(engine.bodies)
            await asyncio.sleep(0.2)
            assert len(engine.bodies) == asked, "it serves nobody before it has the weights"
            rollout.fleet.refitted([engine.url], 3)

        episodes = play(chat, told(engine), 4, away, episode=1.5)
        assert {episode.outcome for episode in episodes} == {"success"}
        assert Counting.opened == 4


def test_where_nobody_brings_weights_an_episode_ends_with_its_only_engine(chat: ChatTokens) -> None:
    with StubEngine(by_seed(chat)) as engine:
        engine.gone = True
        episodes = play(chat, Fleet([engine.url]), 2)
        assert {episode.outcome for episode in episodes} == {"error"}
        assert {episode.lost for episode in episodes} == {LostPart.ENGINE}
        assert all(engine.url in (episode.error or "") for episode in episodes)


def test_a_request_that_ends_every_engine_comes_to_an_end_itself(chat: ChatTokens) -> None:
    with StubEngine(by_seed(chat), version="3") as engine:
        engine.gone = True
        back = 0

        async def comes_back(rollout: Rollout) -> None:
            nonlocal back
            while back < 20:
                await asyncio.sleep(0.02)
                if rollout.fleet.dead():
                    back += 1
                    rollout.fleet.came_back(engine.url, 3)

        config, waits, turns = limited(TURNS, 50, 500, concurrency=64)
        group = Group(Task("q", [{"role": "user", "content": "the capital of Peru"}], {}), 0, range(1))

        async def run() -> list[Episode]:
            fleet = told(engine)
            async with Rollout(fleet, TOKEN, chat, Counting, config, waits, max_turns=turns, seed=7) as rollout:
                coming = asyncio.create_task(comes_back(rollout))
                played = await rollout.run_group_batch([group], 0)
                coming.cancel()
                return played

        (episode,) = asyncio.run(asyncio.wait_for(run(), 60))
        assert episode.outcome == "error"
        assert episode.lost is None, "there were engines"
        assert len(engine.bodies) == MOST_LOST + 1


def test_an_engine_that_comes_back_while_an_episode_begins_to_wait_is_taken_at_once() -> None:
    """Word of it comes after the look at the engines, before the waiting has had its first turn of the loop."""
    _, waits, _ = limited(TURNS, 50, 500)

    async def run() -> float:
        fleet, changes = Fleet(["http://a"], told=True), Changes()
        fleet.on_change = changes.happened
        seat = Seat(fleet, {}, replace(waits, batch=5.0), changes.wait)
        taking = asyncio.create_task(seat.take())
        asyncio.get_running_loop().call_soon(lambda: fleet.refitted(["http://a"], 1))
        began = time.monotonic()
        await taking
        return time.monotonic() - began

    assert asyncio.run(run()) < 2.5


@pytest.mark.parametrize(("deaths", "outcome"), [(1, "success"), (2, "error")])
def test_an_episode_whose_worker_died_is_played_once_more_from_its_beginning(
    chat: ChatTokens, deaths: int, outcome: str
) -> None:
    left = deaths

    class Dying(Counting):
        async def step(self, action: str) -> StepResult:
            nonlocal left
            if self.turns == 1 and left:
                left -= 1
                raise WorkerDied("it was killed")
            return await super().step(action)

    with StubEngine(by_seed(chat), version="3") as engine:
        (undisturbed,) = play(chat, told(engine), 1)
        (episode,) = play(chat, told(engine), 1, make=Dying)
        assert episode.outcome == outcome
        assert outcome == "error" or learnt_from(episode) == learnt_from(undisturbed)
        assert left == 0


def test_an_error_that_only_says_what_a_dead_worker_would_is_played_once(chat: ChatTokens) -> None:
    class WorkerDiedTwice(RuntimeError):
        pass

    class Saying(Counting):
        async def step(self, action: str) -> StepResult:
            raise WorkerDiedTwice("it was killed")

    with StubEngine(by_seed(chat), version="3") as engine:
        (episode,) = play(chat, told(engine), 1, make=Saying)
        assert (episode.error or "").startswith("WorkerDied")
        assert Counting.opened == 1


def test_episodes_that_no_engine_was_left_for_say_so_when_their_round_ends(chat: ChatTokens) -> None:
    with StubEngine(by_seed(chat), version="3", gone=True) as lost:
        episodes = play(chat, told(lost), 3, timeout=0.5)
        assert {(episode.outcome, episode.lost) for episode in episodes} == {("error", LostPart.ENGINE)}
    with StubEngine(by_seed(chat), version="3", delay=30.0) as slow:
        episodes = play(chat, told(slow), 3, timeout=0.5)
        assert {(episode.outcome, episode.lost) for episode in episodes} == {("error", None)}
