"""Many episodes at once over one or more engines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from megatron_empg.common.waits import Waits
from megatron_empg.environments.asking import abandon_what_was_left_behind
from megatron_empg.environments.base import Environment, Task
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.client import EngineClient, Sampling
from megatron_empg.rollout.config import RolloutConfig
from megatron_empg.rollout.episode import EngineFailed, Episode, LostPart, run_episode
from megatron_empg.rollout.fleet import Fleet, NoHealthyEngine
from megatron_empg.rollout.seat import Seat
from megatron_empg.rollout.seeds import derive_seed

SECONDS_TO_END = 5.0
"""What an environment still does that did not answer in time may end by itself within these."""


@dataclass(frozen=True)
class Group:
    """Episodes of one task whose rewards are compared: one episode for each number in `samples`.

    Task, step and sample number make the seeds: the same three give the same tokens.
    """

    task: Task
    index: int
    samples: Sequence[int]


class Changes:
    """Something that several wait for, each for its next time."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def happened(self) -> None:
        """Whoever waits goes on."""
        self._next.set()
        self._next = asyncio.Event()

    def wait(self) -> Awaitable[object]:
        """Wait for the next time it happens after this call, also where the answer is awaited later than that."""
        return self._next.wait()


class Rollout:
    """Open connections to a fleet. Use as `async with Rollout(...) as rollout`.

    An episode has `max_turns` turns at most, and its random numbers begin with the run's `seed`. One try at it may
    take `waits.episode` seconds from its first request on: what it waits for its turn among the `concurrency` does
    not count.
    """

    def __init__(
        self,
        fleet: Fleet,
        token: str,
        chat: ChatTokens,
        make_environment: Callable[[Task], Environment],
        config: RolloutConfig,
        waits: Waits,
        *,
        max_turns: int,
        seed: int,
    ) -> None:
        self.fleet = fleet
        self._chat = chat
        self._make_environment = make_environment
        self._config = config
        self._waits = waits
        self._max_turns = max_turns
        self._seed = seed
        self.places = asyncio.Semaphore(config.concurrency)
        """Every episode takes one before its time begins, those of a stream and of an evaluation beside it alike:
        so none waits on its own clock for a worker process."""
        # A request must not spend its time waiting for a connection.
        self._client_of = partial(
            EngineClient, token=token, timeout=waits.request, max_connections=config.concurrency
        )
        self._clients = {url: self._client_of(url) for url in fleet.engines}
        self.moves = 0
        """Times that an episode went on on another engine."""
        self._changes = Changes()
        fleet.on_change = self._changes.happened
        self._stack = AsyncExitStack()

    @property
    def clients(self) -> Mapping[str, EngineClient]:
        """The engines by their URLs."""
        return self._clients

    def wait_for_change(self) -> Awaitable[object]:
        """Wait for the next change of any engine's state after this call."""
        return self._changes.wait()

    async def know(self, url: str) -> None:
        """Open a connection to an engine that comes to those that were given; nothing for one that is known."""
        if url not in self._clients:
            self._clients[url] = await self._stack.enter_async_context(self._client_of(url))

    async def __aenter__(self) -> Rollout:
        for client in self._clients.values():
            await self._stack.enter_async_context(client)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()
        await abandon_what_was_left_behind(SECONDS_TO_END)

    async def run_group_batch(
        self,
        groups: Sequence[Group],
        step: int,
        *,
        sampling: Sampling | None = None,
        timeout: float | None = None,
        on_episode: Callable[[Episode], None] | None = None,
    ) -> list[Episode]:
        """All episodes of all groups, ordered as given, whatever order they end in.

        `step` goes into the seeds; `sampling` replaces the config's temperature (evaluation). `on_episode` sees
        each as it ends. Failures become episodes with outcome "error", as does what is not over after `timeout`
        seconds. Whoever cancels this cancels every episode and every request.
        """
        drawn = sampling or Sampling(self._config.temperature)
        plays = [(group, sample) for group in groups for sample in group.samples]
        episodes = [_unplayed(group, sample, "begun", timeout) for group, sample in plays]
        waiting = iter(enumerate(plays))
        unplayed = set(range(len(plays)))

        async def play_waiting() -> None:
            for place, (group, sample) in waiting:
                async with self.places:
                    episodes[place] = _unplayed(group, sample, "over", timeout)
                    episodes[place] = await self._play(group, sample, step, drawn)
                    unplayed.remove(place)
                if on_episode is not None:
                    on_episode(episodes[place])

        try:
            async with asyncio.timeout(timeout), asyncio.TaskGroup() as players:
                for _ in range(min(self._config.concurrency, len(plays))):
                    players.create_task(play_waiting())
        except TimeoutError:  # what is missing says so itself
            if not self.fleet.healthy():
                for place in unplayed:
                    episodes[place].lost = LostPart.ENGINE
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return episodes

    @property
    def concurrency(self) -> int:
        """Episodes that may be in flight at once, over all engines."""
        return self._config.concurrency

    async def play(self, group: Group, sample: int, step: int) -> Episode:
        """One episode of a group, as `run_group_batch` plays each of its own; the caller holds one of `places`."""
        return await self._play(group, sample, step, Sampling(self._config.temperature))

    def prompt_of(self, episode: Episode) -> str:
        """What the policy read before its first turn, control tokens too; empty where it was given nothing."""
        return self._chat.spelled(episode.sequences[0][: episode.prompt_length])

    async def _play(self, group: Group, sample: int, step: int, sampling: Sampling) -> Episode:
        """One episode; once more from its beginning, with the same seeds, where its worker process died."""
        episode = await self._play_once(group, sample, step, sampling)
        if episode.lost is LostPart.WORKER:
            return await self._play_once(group, sample, step, sampling)
        return episode

    async def _play_once(self, group: Group, sample: int, step: int, sampling: Sampling) -> Episode:
        seat = Seat(self.fleet, self._clients, self._waits, self._changes.wait)
        try:
            await seat.take()
            async with asyncio.timeout(self._waits.episode) as limit:
                seat.begins(limit)
                return await self._play_on(seat, group, sample, step, sampling)
        except NoHealthyEngine as error:
            what = f"{type(error).__name__}: {error}"
            return Episode(group.task.id, group.index, sample, error=what, lost=LostPart.ENGINE)
        except TimeoutError:
            seconds = f"{self._waits.episode:g} s"
            what = f"EpisodeTimeout: not over after {seconds} (limits.episode_timeout) on {seat.url}"
            return Episode(group.task.id, group.index, sample, error=what)
        except EngineFailed as error:
            return error.episode
        finally:
            self.moves += len(seat.moved)
            seat.leave()

    async def _play_on(self, seat: Seat, group: Group, sample: int, step: int, sampling: Sampling) -> Episode:
        """All turns of an episode go to one engine, which has their prefix in its cache, as long as it can."""
        task = group.task
        return await run_episode(
            await seat.now(),
            self._chat,
            partial(self._make_environment, task),
            task,
            sampling,
            self._config,
            self._waits,
            self._max_turns,
            partial(derive_seed, self._seed, step, task.id, sample),
            group=group.index,
            sample=sample,
            seat=seat,
        )


def _unplayed(group: Group, sample: int, what: str, timeout: float | None) -> Episode:
    """An episode that had not `what` when its round's time was over."""
    error = f"RoundTimeout: not {what} when the {timeout} s of its round ended (limits.round_timeout, "
    return Episode(group.task.id, group.index, sample, error=error + "within limits.rollout_timeout)")
