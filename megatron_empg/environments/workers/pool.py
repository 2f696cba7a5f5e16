"""A pool of worker processes, as many as memory allows, in which episodes run."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable

from megatron_empg.environments.base import Environment, EpisodeLimits, Task
from megatron_empg.environments.blocking import in_thread
from megatron_empg.environments.settings import EnvironmentSettings
from megatron_empg.environments.workers.episode import WorkerEpisode
from megatron_empg.environments.workers.errors import (
    EnvironmentRaised,
    EnvironmentWorkerError,
    PoolClosed,
    WorkerMemory,
    WorkerStartError,
)
from megatron_empg.environments.workers.memory import memory_taken
from megatron_empg.environments.workers.options import WorkerOptions
from megatron_empg.environments.workers.process import WorkerProcess

logger = logging.getLogger(__name__)

_GIB = 1 << 30
_STARTS_IN_A_ROW = 3


class WorkerPool:
    """Workers of one environment, for the episodes of one event loop.

    An episode that finds no worker free waits, in order. A worker runs one episode at a time and many after each
    other. It dies with the thread of the event loop.
    """

    def __init__(
        self,
        name: str,
        settings: EnvironmentSettings,
        limits: EpisodeLimits,
        *,
        memory_gib: float,
        worker_memory_gib: float,
        options: WorkerOptions | None = None,
    ) -> None:
        """`name` and `settings` of the environment; GiB of all workers, and of one.

        Raises ValueError when there is no room for one.
        """
        self.name = name
        self.limits = limits
        self.options = options or WorkerOptions()
        self.workers = _workers(name, memory_gib, worker_memory_gib)
        self.waiting = 0
        self.died = 0
        self._settings = settings.model_dump_json()
        self._worker_bytes = worker_memory_gib * _GIB
        self._places = asyncio.Semaphore(self.workers)
        self._starting = asyncio.Semaphore(os.cpu_count() or 1)
        self._failed_starts = 0
        self._broken: Callable[[], EnvironmentWorkerError] | None = None
        self._live: set[WorkerProcess] = set()
        self._idle: list[WorkerProcess] = []
        self._endings: dict[WorkerProcess, asyncio.Task[None]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def live(self) -> int:
        """Worker processes that exist."""
        return len(self._live)

    def make(self, task: Task) -> Environment:
        """An episode of `task` that has not begun."""
        return WorkerEpisode(self, task)

    async def close(self) -> None:
        """End all workers, those with an episode too, and wait until they are gone."""
        if self._watch is not None:
            self._watch.cancel()
        self._broken = lambda: PoolClosed(f"the workers of environment {self.name!r} were closed")
        # The first one that waits wakes the next when it finds the pool closed.
        self._places.release()
        for worker in list(self._live):
            if worker not in self._idle:
                worker.kill(PoolClosed(worker.explained("was killed: its pool was closed")))
            self._end(worker, self.options.close_timeout if worker in self._idle else 0.0)
        self._idle.clear()
        await asyncio.gather(*self._endings.values())

    async def acquire(self) -> WorkerProcess:
        """A worker for one episode, as soon as there is one. Raises EnvironmentWorkerError."""
        self._begin_on_this_loop()
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        try:
            return self._free_worker() or await self._start()
        except BaseException:
            # Only when nothing is left of a worker whose start was given up.
            self._after(set(self._endings.values()), self._places.release)
            raise

    def give_back(self, worker: WorkerProcess) -> None:
        """Take a worker back whose episode was closed."""
        worker.episodes += 1
        if worker.episodes >= self.options.episodes_per_worker or worker not in self._live:
            self._end(worker, self.options.close_timeout, self._places.release)
            return
        self._idle.append(worker)
        self._places.release()
