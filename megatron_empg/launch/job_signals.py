"""What signals do to a training job: USR1 asks it to end in order, TERM ends it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path


class JobSignals:
    """`say` tells of a signal in the job's output."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.asked = False
        """Whether USR1 came: the run ends after the running step, and the job is requeued."""
        self.stop: Path | None = None
        """The file that training looks for after each step, once the run folder is there."""

    def install(self) -> None:
        """Handle the job's signals from now on; call it in the main thread."""
        signal.signal(signal.SIGUSR1, self._on_request)
        signal.signal(signal.SIGTERM, _on_end)

    def being_requeued(self) -> None:
        """TERM comes with the requeueing, which is not over yet."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def is_requeued(self) -> None:
        """Let TERM end the job again."""
        signal.signal(signal.SIGTERM, _on_end)

    def _on_request(self, *_: object) -> None:
        self.asked = True
        self._say("signal: ending after the running step, with a checkpoint")
        if self.stop is not None and self.stop.parent.is_dir():
            self.stop.touch()


def _on_end(number: int, _: object) -> None:
    raise SystemExit(128 + number)
