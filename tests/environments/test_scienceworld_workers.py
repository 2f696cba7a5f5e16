"""ScienceWorld as a run plays it: a Java process in each worker process."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path

import pytest

from megatron_empg.environments.conformance import check_environment
from megatron_empg.environments.registry import make_task_source
from megatron_empg.environments.text_worlds.turns import write_turn
from megatron_empg.environments.workers import WorkerOptions, WorkerPool, errors
from megatron_empg.environments.workers.memory import descendants, memory_taken

TASKS = ["find-non-living-thing", "lifespan-longest-lived"]
"""Those with the shortest solutions."""
LOOK = write_turn("a test", "look around")
PATIENCE = 300.0
GIB = 1 << 30


def on_a_loop(test):
    @wraps(test)
    def run(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    return run


@asynccontextmanager
async def pool_of(step_timeout=PATIENCE):
    source = make_task_source("scienceworld", max_turns=30, step_timeout=step_timeout, tasks=TASKS)
    pool = WorkerPool(
        "scienceworld",
        source.settings,
        source.limits,
        memory_gib=source.worker_memory_gib,
        worker_memory_gib=source.worker_memory_gib,
        options=WorkerOptions(close_timeout=30.0),
    )
    try:
        yield pool, source.tasks("train")
    finally:
        await pool.close()
        await source.close()


@on_a_loop
async def test_a_worker_has_its_java_process_before_an_episode_begins():
    async with pool_of() as (pool, tasks):
        episode = pool.make(tasks[0])
        await episode.admitted()
        (worker,) = pool._live
        (java,) = java_below(worker.pid)
        await episode.reset()
        assert java_below(worker.pid) == [java]
        await episode.close()


def java_below(pid):
    names = {below: Path(f"/proc/{below}/comm").read_text(encoding="utf-8").strip() for below in descendants(pid)}
    return [below for below, name in names.items() if name == "java"]


@asynccontextmanager
async def episode_of(pool, task):
    episode = pool.make(task)
    try:
        await episode.reset()
        yield episode
    finally:
        await episode.close()


def java_of(pool):
    """The worker, and the Java process below it."""
    (worker,) = pool._live
    found = [
        pid for pid in descendants(worker.pid) if "java" in Path(f"/proc/{pid}/comm").read_text(encoding="utf-8")
    ]
    (java,) = found
    return worker.pid, java


async def gone(*pids):
    for pid in pids:
        for _ in range(6000):
            if not Path(f"/proc/{pid}").exists():
                break
            await asyncio.sleep(0.02)
        assert not Path(f"/proc/{pid}").exists()


@on_a_loop
async def test_a_worker_has_one_process_for_all_its_episodes(scienceworld):
    async with pool_of() as (pool, tasks):
        seen = []
        for task in (tasks[0], tasks[-1]):
            async with episode_of(pool, task) as episode:
                result = await episode.step(LOOK)
                assert "This room is called" in result.observation
                assert 0 <= result.info["score"] < 100
                seen.append(java_of(pool))
        assert seen[0] == seen[1]
        worker, java = seen[0]
        (taken,) = memory_taken([worker], GIB * 8)
        assert taken < 0.8 * GIB * 0.75
    await gone(worker, java)


@on_a_loop
async def test_a_worker_that_is_killed_leaves_no_java_behind(scienceworld):
    async with pool_of() as (pool, tasks), episode_of(pool, tasks[0]) as episode:
        worker, java = java_of(pool)
        os.kill(java, signal.SIGSTOP)  # even one that can do nothing by itself
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(errors.WorkerDied, match="SIGKILL"):
            await episode.step(LOOK)
        await gone(java)


@on_a_loop
async def test_java_that_crashes_costs_its_episode_and_is_named(scienceworld):
    async with pool_of() as (pool, tasks):
        async with episode_of(pool, tasks[0]) as episode:
            before = java_of(pool)
            os.kill(before[1], signal.SIGKILL)
            with pytest.raises(
                errors.EnvironmentRaised, match=r"ScienceWorld's Java process \d+ was killed by SIGKILL"
            ):
                await episode.step(LOOK)
        async with episode_of(pool, tasks[0]) as episode:
            assert "This room is called" in (await episode.step(LOOK)).observation
            assert java_of(pool)[1] != before[1]


@on_a_loop
async def test_java_that_hangs_costs_its_episode_after_the_steps_limit(scienceworld):
    async with pool_of() as (pool, tasks), episode_of(pool, tasks[0]) as episode:
        _, java = java_of(pool)
        os.kill(java, signal.SIGSTOP)
        episode._pool = _Hasty(pool)
        with pytest.raises(errors.WorkerTimeout, match="step took more than 2 s"):
            await episode.step(LOOK)
        await gone(java)


class _Hasty:
    """A pool whose steps may take two seconds; the start of Java, which is a part of a reset, may take longer."""

    def __init__(self, pool):
        self._pool = pool
        self.limits = type(pool.limits)(pool.limits.max_turns, 2.0)

    def __getattr__(self, name):
        return getattr(self._pool, name)


def test_it_keeps_to_the_seam(scienceworld):
    found = check_environment("scienceworld", {"tasks": TASKS}, call_timeout=PATIENCE)
    assert [finding for finding in found if finding.verdict in ("broken", "doubtful")] == []
