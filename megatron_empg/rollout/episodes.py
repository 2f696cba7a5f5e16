"""Many episodes at once over one or more engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from megatron_empg.environments.base import Environment, Task
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.client import EngineClient, Sampling
from megatron_empg.rollout.episode import EngineFailed, Episode, Limits, run_episode
from megatron_empg.rollout.fleet import Fleet, NoHealthyEngine
from megatron_empg.rollout.seeds import derive_seed

ATTEMPTS = 2  # an episode whose engine failed starts over once, with the same seeds


@dataclass(frozen=True)
class Group:
    """Episodes of one task whose rewards are compared: one episode for each number in `samples`."""

    task: Task
    index: int
    samples: Sequence[int]


@dataclass(frozen=True)
class RolloutSettings:
    """How episodes are played. `concurrency`: at most so many at once over all engines."""

    sampling: Sampling
    limits: Limits
    run_seed: int
    concurrency: int = 256
    request_timeout: float = 600.0


class Rollout:
    """Open connections to a fleet. Use as `async with Rollout(...) as rollout`.

    `executor`: where environments step; on the event loop when None (for those that answer in well under 1 ms).
    """

    def __init__(
        self,
        fleet: Fleet,
        token: str,
        chat: ChatTokens,
        make_environment: Callable[[Task], Environment],
        settings: RolloutSettings,
        executor: Executor | None = None,
    ) -> None:
        self.fleet = fleet
        self._chat = chat
        self._make_environment = make_environment
        self._settings = settings
        self._executor = executor
        self._clients = {url: EngineClient(url, token, timeout=settings.request_timeout) for url in fleet.engines}
        self._stack = AsyncExitStack()

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

    async def run_group_batch(
        self,
        groups: Sequence[Group],
        step: int,
        *,
        sampling: Sampling | None = None,
        on_episode: Callable[[Episode], None] | None = None,
    ) -> list[Episode]:
        """All episodes of all groups, ordered as given, whatever order they end in.

        `step` goes into the seeds; `sampling` replaces the settings' (evaluation). `on_episode` sees each as it
        ends. Failures become episodes with outcome "error".
        """
        gate = asyncio.Semaphore(self._settings.concurrency)
        drawn = sampling or self._settings.sampling

        async def play(group: Group, sample: int) -> Episode:
            async with gate:
                episode = await self._play(group, sample, step, drawn)
            if on_episode is not None:
                on_episode(episode)
            return episode

        plays = [play(group, sample) for group in groups for sample in group.samples]
        return list(await asyncio.gather(*plays))

    async def revive(self) -> None:
        """Ask the dead engines whether they answer again; those that do are STALE until refitted."""
        for url, client in self._clients.items():
            if url not in self.fleet.answering() and await client.health():
                self.fleet.came_back(url)

    async def _play(self, group: Group, sample: int, step: int, sampling: Sampling) -> Episode:
        failed = Episode(group.task.id, group.index, sample)
        for _ in range(ATTEMPTS):
            try:
                url = self.fleet.assign()
            except NoHealthyEngine as error:
                failed.error = failed.error or str(error)
                return failed
            try:
                return await self._play_on(url, group, sample, step, sampling)
            except EngineFailed as error:
                failed = error.episode
                if not await self._clients[url].health():
                    self.fleet.declare_dead(url)
            finally:
                self.fleet.release(url)
        return failed

    async def _play_on(self, url: str, group: Group, sample: int, step: int, sampling: Sampling) -> Episode:
        """All turns of an episode go to one engine, which has their prefix in its cache."""
        task = group.task
        return await run_episode(
            self._clients[url],
            self._chat,
            partial(self._make_environment, task),
            task,
            sampling,
            self._settings.limits,
            partial(derive_seed, self._settings.run_seed, step, task.id, sample),
            group=group.index,
            sample=sample,
            executor=self._executor,
        )
