"""`empg` as a user types it, watched: killed at will, and ended with an account of itself when it stands still."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from recipe_files import ROOT

from megatron_empg.cluster.watchdog import read_beats
from megatron_empg.trainer.jsonl import read_lines

STANDSTILL = 25.0
"""Seconds in which the machine's cores were idle, on average, and the run took next to no processor time though
it could have had it: it waits for what never comes. On a machine that is busy otherwise they pass slowly."""
IDLE_SHARE = 0.03
"""Of one core: what a run takes that only waits (heartbeats, looking for answers, engines at rest)."""
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

    @property
    def logged(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "metrics.jsonl")

    def run(self, *arguments: str, kill_after_step: int | None = None) -> None:
        """Start ``empg`` and see it through, or kill it as soon as it has logged a step. Raises Stuck."""
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
            launcher.kill()
            launcher.wait()
            self.exits.append(launcher.returncode)
            self.output = log.read_text()
            _, orphans = psutil.wait_procs(family, timeout=15)
            for process in orphans:
                process.kill()
        assert not orphans, f"processes outlived their launcher: {orphans}"

    def _watch(self, launcher: "subprocess.Popen[bytes]", kill_after_step: int | None) -> None:
        spent, begun = ProcessorTime(), time.monotonic()
        mark, marked = 0.0, idle_seconds()
        while launcher.poll() is None:
            spent.look(family_of(launcher))
            now = time.monotonic()
            if spent.total - mark > IDLE_SHARE * STANDSTILL:
                mark, marked = spent.total, idle_seconds()
            if idle_seconds() - marked > STANDSTILL or now - begun > LONGEST:
                raise Stuck(f"after {now - begun:.0f} s nothing moves: {self._account()}")
            if kill_after_step is not None and any(line["step"] >= kill_after_step for line in self.logged):
                break
            time.sleep(0.2)
        self.processor_seconds += spent.total

    def _account(self) -> str:
        """Where the ranks stand, and how far the run came."""
        ranks = "; ".join(map(str, read_beats(self.folder))) or "no rank has begun"
        return f"{ranks}. Steps logged: {[line['step'] for line in self.logged]}"


@dataclass
class ProcessorTime:
    """Processor seconds of processes that come and go."""

    seen: dict[tuple[int, float], float] = field(default_factory=dict)

    def look(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            self.seen[process.pid, process.create_time()] = times.user + times.system

    @property
    def total(self) -> float:
        return sum(self.seen.values())


def idle_seconds() -> float:
    """How long a core of this machine has been idle, on average, since it was started."""
    return psutil.cpu_times().idle / psutil.cpu_count()


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


KILLED = -signal.SIGKILL
