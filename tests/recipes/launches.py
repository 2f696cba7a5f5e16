"""`empg` as a user types it, watched: killed at will, and ended with an account of itself when it stands still."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from megatron_empg.common.jsonl import read_lines
from megatron_empg.run.heartbeat import read_beats
from tests.recipes.recipe_files import ROOT

STANDSTILL = 30.0
"""Seconds in which a run takes next to no processor time though it could: it waits for what never comes."""
IDLE_SHARE = 0.06
"""Of one core, for each process: what it takes at most while it only waits (a rank in a collective takes 0.03)."""
READY_LOOKS = 0.2
"""Share of looks at a run that may find one of its processes ready to run though all of them only wait."""
LONGEST = 900.0
"""Seconds that one start may take at all."""


class Stuck(AssertionError):
    """A run that no longer gets on; the message says where each rank stands."""


@dataclass
class Launches:
    """The starts of one run, and what was seen of their processes."""

    folder: Path
    exits: list[int] = field(default_factory=list)
    output: str = ""
    processor_seconds: float = 0.0
    """What the processes took, as far as they were seen."""
    killed: list[str] = field(default_factory=list)
    """The command lines of the launcher's processes when it was killed, itself among them."""

    @property
    def logged(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "metrics.jsonl")

    def run(self, *arguments: str, kill_after_step: int | None = None) -> None:
        """Start ``empg`` and see it through, or kill it as soon as it has logged a step. Raises Stuck.

        Whatever it has started must end with it, a killed one too.
        """
        log = self.folder.with_suffix(".log")
        with log.open("w") as output:
            launcher = subprocess.Popen(
                [sys.executable, "-m", "megatron_empg.cli", *arguments],
                cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            self._watch(launcher, kill_after_step)
        finally:
            family = family_of(launcher)
            if kill_after_step is not None:
                self.killed += command_lines(family)
            launcher.kill()
            launcher.wait()
            self.exits.append(launcher.returncode)
            self.output = log.read_text()
            _, orphans = psutil.wait_procs(family, timeout=15)
            for process in orphans:
                process.kill()
        assert not orphans, f"processes outlived their launcher: {orphans}"

    def _watch(self, launcher: "subprocess.Popen[bytes]", kill_after_step: int | None) -> None:
        activity, begun = Activity(), time.monotonic()
        while launcher.poll() is None:
            activity.look(family_of(launcher))
            now = time.monotonic()
            if activity.still_for(now) > STANDSTILL or now - begun > LONGEST:
                raise Stuck(f"after {now - begun:.0f} s nothing moves: {self._account()}")
            if kill_after_step is not None and any(line["step"] >= kill_after_step for line in self.logged):
                break
            time.sleep(0.2)
        self.processor_seconds += activity.processor_seconds

    def _account(self) -> str:
        """Where the ranks stand, and how far the run came."""
        ranks = "; ".join(map(str, read_beats(self.folder))) or "no rank has begun"
        return f"{ranks}. Steps logged: {[line['step'] for line in self.logged]}"


@dataclass
class Activity:
    """Whether processes that come and go do anything: take processor time, or would if a busy machine gave it."""

    seen: dict[tuple[int, float], float] = field(default_factory=dict)
    """Processor seconds of each, by number and start."""
    since: float = field(default_factory=time.monotonic)
    spent_then: float = 0.0
    largest: int = 0
    """The most processes at once, since then."""
    looks: int = 0
    ready: int = 0
    """Looks since then, and those that found a process on a processor, or waiting for one or for a disk."""

    def look(self, processes: list[psutil.Process]) -> None:
        found = 0
        states: set[str] = set()
        for process in processes:
            try:
                times = process.cpu_times()
                self.seen[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue
            states |= thread_states(process.pid)
            found += 1
        self.largest = max(self.largest, found)
        self.looks += 1
        self.ready += bool({"R", "D"} & states)

    def still_for(self, now: float) -> float:
        """Seconds since the processes last did more than to wait."""
        worked = self.processor_seconds - self.spent_then > IDLE_SHARE * STANDSTILL * self.largest
        if worked or self.ready > READY_LOOKS * max(self.looks, 20):
            self.since, self.spent_then = now, self.processor_seconds
            self.looks = self.ready = self.largest = 0
        return now - self.since

    @property
    def processor_seconds(self) -> float:
        return sum(self.seen.values())


def thread_states(pid: int) -> set[str]:
    """Of all threads, as proc(5) has them: those of a JVM work while its first one waits for its end."""
    states = set()
    # A thread that ends meanwhile has no file any more.
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            _, _, behind_name = (thread / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
            states.add(behind_name.split()[0])
    return states


def environment() -> dict[str, str]:
    """This process's, with this checkout's package before any installed one."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def family_of(launcher: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """The launcher's processes and theirs; none when it has gone."""
    try:
        parent = psutil.Process(launcher.pid)
        return [parent, *parent.children(recursive=True)] if parent.status() != psutil.STATUS_ZOMBIE else []
    except psutil.NoSuchProcess:
        return []


def command_lines(processes: list[psutil.Process]) -> list[str]:
    """Of those that are still there."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    return found


KILLED = -signal.SIGKILL
