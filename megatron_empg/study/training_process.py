"""`empg train` as a process of a study, which is asked to end in order when the study is."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class TrainingProcess:
    """One training after the other. What interrupts the study goes on to the one that runs.

    `empg train` then ends behind its running step, with a checkpoint, and the same command goes on from it.
    """

    def __init__(self, ends: float) -> None:
        """`ends`: when the running one is asked to end, by `time.monotonic`."""
        self.asked = False
        """Whether the study was asked to end, or its time is over."""
        self._ends = ends
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM in this context. It needs the main thread."""
        before = {number: signal.signal(number, self._interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def over(self) -> bool:
        """Whether nothing is to be begun any more."""
        return self.asked or time.monotonic() >= self._ends

    def run(self, command: Sequence[str], log: Path) -> int:
        """Start a command, whose output goes to the log, and wait for its end; its exit status."""
        with log.open("wb") as file:
            # A session of its own: Ctrl-C reaches this process alone, which hands it on once.
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        self._process = process
        try:
            if self.asked:  # it came before there was a process to tell
                process.send_signal(signal.SIGINT)
            return self._wait(process)
        finally:
            self._process = None

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        left = self._ends - time.monotonic()
        if left == float("inf"):
            return process.wait()
        try:
            return process.wait(max(left, 0.0))
        except subprocess.TimeoutExpired:
            self._ask(signal.SIGINT)
        return process.wait()

    def _interrupted(self, number: int, _: Any) -> None:
        self._ask(signal.Signals(number))

    def _ask(self, number: signal.Signals) -> None:
        self.asked = True
        if self._process is not None:
            self._process.send_signal(number)
