"""Where a run's tasks come from and its episodes run: on the event loop, or in worker processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from megatron_empg.environments.base import Environment, Task, TaskSource
from megatron_empg.environments.config import task_source_of
from megatron_empg.environments.source_metrics import metric_faults
from megatron_empg.environments.workers.pool import WorkerPool
from megatron_empg.rollout.service.config import ServiceConfig
from megatron_empg.run.metric_names import find

GIB = 1 << 30
FREE_SHARE = 0.5
"""Share of this machine's free memory that workers take where the recipe gives no number."""


@dataclass(frozen=True)
class EpisodeSource:
    """Tasks, and how an episode of one is made. `pool`: the worker processes, where there are any."""

    tasks: TaskSource
    make: Callable[[Task], Environment]
    pool: WorkerPool | None = None

    def at_once(self, wanted: int) -> int:
        """How many of the `wanted` episodes may be in flight: none begins without a free worker."""
        return wanted if self.pool is None else min(wanted, self.pool.workers)

    def metrics(self) -> dict[str, float]:
        """Metrics of the source and of the worker processes.

        Raises ValueError where the source takes names that are not its own.
        """
        counted = dict(self.tasks.metrics())
        faults = metric_faults(counted)
        if not faults:
            faults = [f"the metric {name!r}, which no judge writes" for name in counted if find(name) is None]
        if faults:
            raise ValueError(f"environment {type(self.tasks).__name__} counts {faults[0]}")
        if self.pool is not None:
            counted["rollout/environment_workers"] = self.pool.live
            counted["rollout/environment_workers_died"] = self.pool.died
        return counted


@asynccontextmanager
async def open_episode_source(config: ServiceConfig) -> AsyncIterator[EpisodeSource]:
    """The source of the run's environment, and its workers until the end. Raises ValueError."""
    source = task_source_of(config.environment, config.waits)
    try:
        if source.isolation == "coroutine":
            yield _checked(EpisodeSource(source, source.make))
        else:
            async with _workers(config, source) as pool:
                yield _checked(EpisodeSource(source, pool.make, pool))
    finally:
        await source.close()


def _checked(source: EpisodeSource) -> EpisodeSource:
    """The same, whose metrics would be refused after the first batch only."""
    source.metrics()
    return source


@asynccontextmanager
async def _workers(config: ServiceConfig, source: TaskSource) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(
        config.environment.name,
        source.settings,
        source.limits,
        memory_gib=config.limits.environment_memory or free_memory_gib() * FREE_SHARE,
        worker_memory_gib=source.worker_memory_gib,
        python=type(source).worker_python(source.settings),
    )
    try:
        yield pool
    finally:
        await pool.close()


def free_memory_gib() -> float:
    """GiB that this machine could give away now."""
    import psutil

    return float(psutil.virtual_memory().available) / GIB
