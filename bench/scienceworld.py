"""ScienceWorld's cost: start of the engine, reset, step with and without choices, memory of a worker.

    python -m bench.scienceworld
    python -m bench.scienceworld --tasks boil,grow-plant --steps 60 --rounds 3

Each choice plays the same commands in the same variations, after a round that is not counted, as Java compiles
what it has run often. Beside the time that went by, the CPU time of the Java process is shown, which other load on
the machine disturbs less. Memory is that of one worker process and of its Java together (proportional set sizes),
the most of what was seen at the end of an episode.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import get_args

import psutil
from rich.console import Console
from rich.table import Table

from megatron_empg.environments.registry import make_task_source
from megatron_empg.environments.scienceworld.engine import Engine
from megatron_empg.environments.scienceworld.java_installation import installed
from megatron_empg.environments.scienceworld.settings import Choices, ScienceWorldSettings
from megatron_empg.environments.scienceworld.variations import Variation, all_tasks
from megatron_empg.environments.scienceworld.world import ScienceWorldWorld
from megatron_empg.environments.text_worlds.turns import write_turn
from megatron_empg.environments.workers import WorkerPool
from megatron_empg.environments.workers.memory import descendants

PATIENCE = 600.0
CHOICES: tuple[Choices, ...] = get_args(Choices)
COMMANDS = (
    "look around",
    "teleport to kitchen",
    "open cupboard",
    "pick up thermometer",
    "qzx",
    "wait1",
    "inventory",
)
MIB = 1 << 20


@dataclass(frozen=True)
class Spent:
    """Milliseconds: of the clock, and of the Java process's CPU."""

    clock: float
    cpu: float

    def shown(self) -> tuple[str, str]:
        return f"{self.clock:.1f}", f"{self.cpu:.1f}"


@contextmanager
def timed(engine: Engine, into: list[Spent]) -> Iterator[None]:
    """Note what the engine's process spends on this; it may be what starts it."""
    cpu = _cpu_seconds(engine)
    started = time.perf_counter()
    yield
    into.append(Spent(1000 * (time.perf_counter() - started), 1000 * (_cpu_seconds(engine) - cpu)))


def mean(spent: Sequence[Spent]) -> Spent:
    return Spent(fmean(one.clock for one in spent), fmean(one.cpu for one in spent))


def _cpu_seconds(engine: Engine) -> float:
    if engine.pid is None:
        return 0.0
    times = psutil.Process(engine.pid).cpu_times()
    return float(times.user + times.system)


def measure(engine: Engine, tasks: list[str], choices: Choices, steps: int) -> tuple[Spent, Spent, float]:
    """Of a reset, of a step, and the characters of a scene with its choices; means over the tasks."""
    resets: list[Spent] = []
    stepped: list[Spent] = []
    characters = 0
    for task in tasks:
        world = ScienceWorldWorld(engine, Variation(task, 0), ScienceWorldSettings(choices=choices))
        with timed(engine, resets):
            world.begin()
        for number in range(steps):
            with timed(engine, stepped):
                scene = world.act(COMMANDS[number % len(COMMANDS)])
            characters += len(scene.observation) + sum(len(choice) + 1 for choice in scene.choices)
    return mean(resets), mean(stepped), characters / len(stepped)


async def worker_memory(tasks: list[str], steps: int) -> tuple[float, float]:
    """MiB of the Python and of the Java process of a worker, at most."""
    source = make_task_source("scienceworld", max_turns=steps, step_timeout=PATIENCE, tasks=tasks)
    memory = source.worker_memory_gib
    pool = WorkerPool("scienceworld", source.settings, source.limits, memory_gib=memory, worker_memory_gib=memory)
    most: tuple[float, float] = (0.0, 0.0)
    try:
        for task in source.sample("train", 2 * len(tasks), seed=0):
            episode = pool.make(task)
            await episode.reset()
            for number in range(steps):
                await episode.step(write_turn("a measurement", COMMANDS[number % len(COMMANDS)]))
            most = max(most, _memory(next(iter(pool._live)).pid), key=sum)
            await episode.close()
    finally:
        await pool.close()
        await source.close()
    return most


def _memory(worker: int) -> tuple[float, float]:
    python, java = 0.0, 0.0
    for process in map(psutil.Process, descendants(worker)):
        size = process.memory_full_info().pss / MIB
        if process.name() == "java":
            java += size
        else:
            python += size
    return python, java


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="boil,find-living-thing,test-conductivity", help="names, or all")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2, help="that are counted")
    arguments = parser.parse_args()
    tasks = list(all_tasks()) if arguments.tasks == "all" else arguments.tasks.split(",")
    engine = Engine(installed(), PATIENCE)
    table = Table("", "ms", "CPU ms of Java", "characters")
    try:
        first: list[Spent] = []
        with timed(engine, first):
            engine.load(Variation(tasks[0], 0), "easy")
        table.add_row("start and first load", *first[0].shown())
        measure(engine, tasks, "valid", arguments.steps)
        for choices in CHOICES:
            found = [measure(engine, tasks, choices, arguments.steps) for _ in range(arguments.rounds)]
            reset = min((one[0] for one in found), key=lambda one: one.cpu)
            step = min((one[1] for one in found), key=lambda one: one.cpu)
            table.add_row(f"reset, choices {choices}", *reset.shown())
            table.add_row(f"step, choices {choices}", *step.shown(), f"{found[0][2]:.0f}")
    finally:
        engine.close()
    Console(width=100).print(table)
    python, java = asyncio.run(worker_memory(tasks, arguments.steps))
    print(f"a worker: {python:.0f} MiB of Python and {java:.0f} MiB of Java, {(python + java) / 1024:.2f} GiB")


if __name__ == "__main__":
    main()
