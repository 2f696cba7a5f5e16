"""The parts of a run as processes of this machine, which end with the one that started them."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.log_ends import why
from megatron_empg.common.processes import PARENT_VARIABLE
from megatron_empg.launch.interrupts import Interrupted, Interrupts
from megatron_empg.launch.parts import EndedPart, RunPart, status_of
from megatron_empg.rollout.access import TOKEN_VARIABLE
from megatron_empg.run.folder import RunFolder

GRACE_SECONDS = 10.0
"""Between asking a process to end and killing it, and until a killed one must have ended."""
LOGS_BEFORE = 9
"""Logs that are kept of each process beside its newest, one for each start before."""


class LaunchError(EmpgError, RuntimeError):
    """A process of the run failed; the message holds the end of its log."""


@dataclass
class ChildProcess:
    """One started process and where it writes."""

    part: RunPart
    process: subprocess.Popen[bytes]
    log: Path
    told: bool = False
    """Whether its end was told already."""


class LocalRunner:
    """A Runner of processes. Output goes to ``NAME.log`` of the folder `logs`, the token into the environment."""

    def __init__(self, logs: Path) -> None:
        self.token = secrets.token_urlsafe(32)
        self.interrupts = Interrupts()
        self._logs = logs
        self.left_behind: list[str] = []
        """Names of processes that were killed and did not end."""
        self._children: list[ChildProcess] = []

    def start(self, part: RunPart) -> None:
        """Start it, in a session of its own."""
        log = self._new_log(part.name)
        # An interrupt in between would leave a process that nobody ends.
        with log.open("wb") as output, self.interrupts.held_back():
            # Its own session: a Ctrl-C in the terminal reaches the parent alone, which ends things in order.
            process = subprocess.Popen(
                list(part.command),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self._variables(), **part.environment},
                start_new_session=True,
            )
            self._children.append(ChildProcess(part, process, log))

    def ended(self) -> EndedPart | None:
        """One that has ended and was not told yet."""
        for child in self._children:
            status = child.process.poll()
            if status is not None and not child.told:
                child.told = True
                # Those that a killed torchrun started would train on beside their successors.
                _signal_group(child.process, signal.SIGKILL)
                return EndedPart(child.part, status_of(status))
        return None

    def lost_nodes(self, *, ask_each: bool = False) -> Sequence[str]:
        """There are none to lose."""
        return ()

    def end_of_logs(self, part: RunPart) -> str:
        """The first error in its log, and the log's end."""
        return why(self._logs / f"{part.name}.log")

    def logs_kept_of(self, part: RunPart) -> str:
        """Where `_new_log` puts its log at the next start."""
        return str(self._logs / f"{part.name}.1.log")

    def check(self) -> None:
        """Raise LaunchError if a process has ended."""
        ended = self.ended()
        if ended:
            raise LaunchError(f"{ended}; {self.end_of_logs(ended.part)}")

    def stop_part(self, part: RunPart) -> None:
        """End that part's process and its own children, which a frozen one would not do by itself."""
        with self.interrupts.held_back():
            alive = [child for child in self._children if child.part.name == part.name and not child.told]
            self._kill(alive)
            for child in alive:
                child.told = True

    def stop(self) -> None:
        """End every process and its own children: asked first, then killed. No interrupt cuts it short."""
        with self.interrupts.held_back():
            while self.ended():
                continue  # what those have left behind ends with that
            alive = [child for child in self._children if not child.told]
            for child in alive:
                _signal_group(child.process, signal.SIGTERM)
            _wait(alive)
            self._kill(alive)  # those that ended in order too: they may have left a child
            self._children = []

    def _kill(self, children: Sequence[ChildProcess]) -> None:
        """Kill processes with their own children. One that does not end even so, since it waits in the kernel, is
        told and left behind: none of its program goes on, and a wait would hold up the run and any interrupt."""
        for child in children:
            _signal_group(child.process, signal.SIGKILL)
        _wait(children)
        for child in children:
            if child.process.poll() is None:
                self.left_behind.append(child.part.name)
                print(
                    f"{child.part.name}: process {child.process.pid} was killed and has not ended within "
                    f"{GRACE_SECONDS:.0f} s, as it waits in the kernel, for a disk or a device; its port and "
                    "the memory of its GPU are not free until it ends",
                    file=sys.stderr,
                )

    def _variables(self) -> dict[str, str]:
        """What each process is told; the token nowhere else."""
        return {
            TOKEN_VARIABLE: self.token,
            PARENT_VARIABLE: str(os.getpid()),
            "PYTHONUNBUFFERED": "1",
        }

    def _new_log(self, name: str) -> Path:
        """The part's log. Those of the starts before, which say why they ended, are kept beside it: NAME.1.log is
        of the last one, NAME.2.log of the one before that."""
        logs = [self._logs / f"{name}.log"]
        logs += [self._logs / f"{name}.{number}.log" for number in range(1, LOGS_BEFORE + 1)]
        for number in range(LOGS_BEFORE, 0, -1):
            if logs[number - 1].exists():
                logs[number - 1].replace(logs[number])
        return logs[0]


def _wait(children: Sequence[ChildProcess]) -> None:
    """For their ends, GRACE_SECONDS at most for all together."""
    deadline = time.monotonic() + GRACE_SECONDS
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.1, deadline - time.monotonic()))


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def processes_of(folder: RunFolder, *, goes_on: bool = True) -> Iterator[LocalRunner]:
    """The processes of a run that has taken up `folder`; they end, and give it free, with the block.

    An interrupt that ends the run ends this process too: with one line and the exit code of its signal. `goes_on`:
    the same command would continue the run.
    """
    runner = LocalRunner(folder.logs)
    try:
        with runner.interrupts.handled():
            try:
                yield runner
            finally:
                runner.interrupts.ignore()
                runner.stop()
    except Interrupted as interrupted:
        further = f"; the same command goes on after step {folder.last_checkpoint()}" if goes_on else ""
        but = f" but {', '.join(runner.left_behind)}" if runner.left_behind else ""
        print(f"interrupted: all processes{but} have ended{further}", file=sys.stderr)
        raise SystemExit(interrupted.code) from None
    finally:
        folder.close()
