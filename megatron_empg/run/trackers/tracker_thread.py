"""A tracker at work in a thread of its own: training neither waits for it nor ends with it."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from megatron_empg.run.trackers.tracker import Tracker

_log = logging.getLogger(__name__)
STEPS_WAITING = 1000
"""So many may wait for a tracker that does not keep up; later ones are lost to it."""
SECONDS_TO_CLOSE = 60.0
"""How long the end of a run waits for what is still to be sent, by all trackers together."""
_SECRET = ("KEY", "TOKEN", "PASSWORD", "SECRET", "_URL", "_URI")
"""How variables end whose values no log may hold."""
SHORTEST_SECRET = 6

Step = tuple[int, dict[str, float]]


class TrackerThread:
    """Opens a tracker in a thread, which hands it the steps. The first thing that goes wrong is a warning."""

    def __init__(self, title: str, opens: Callable[[], Tracker]) -> None:
        self._title, self._opens = title, opens
        self._waiting: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {title}", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Returns at once."""
        if self._waiting.qsize() < STEPS_WAITING:
            self._waiting.put((step, dict(metrics)))
        else:
            self._warn("does not keep up; it lacks steps from here on")

    def end(self) -> None:
        """No step comes any more: the tracker is closed when it has those that wait. Returns at once."""
        self._waiting.put(None)

    def join(self, seconds: float) -> bool:
        """Wait for the end of the thread, for so long at most. Returns whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def warn_of_its_end(self, seconds: float) -> None:
        """Say that the tracker was not closed in the seconds that it had."""
        self._warn(f"was not done {seconds:g} s after the run's end; it may lack the last steps")

    def _work(self) -> None:
        tracker = self._opened()
        while (given := self._waiting.get()) is not None:
            if tracker is None:
                continue
            try:
                tracker.log(*given)
            except BaseException as error:  # whatever it is, even an exit, is the tracker's alone
                self._warn(f"did not take step {given[0]}, {error_without_secrets(error)}")
        if tracker is not None:
            try:
                tracker.close()
            except BaseException as error:
                self._warn(f"could not be closed, {error_without_secrets(error)}")

    def _opened(self) -> Tracker | None:
        try:
            return self._opens()
        except BaseException as error:
            self._warn(f"cannot be used, {error_without_secrets(error)}")
            return None

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("%s %s. Training goes on, and metrics.jsonl has every step.", self._title, what)


def close_all(threads: Sequence[TrackerThread], seconds: float | None = None) -> None:
    """Wait until every tracker has everything, for so long at most, all of them together.

    `seconds`: SECONDS_TO_CLOSE by default. Trackers end side by side; one that hangs takes no time from another.
    """
    if seconds is None:
        seconds = SECONDS_TO_CLOSE
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.end()
    for thread in threads:
        if not thread.join(max(0.0, deadline - time.monotonic())):
            thread.warn_of_its_end(seconds)


def error_without_secrets(error: BaseException) -> str:
    """An error in one line, without what a secret variable holds."""
    text = " ".join(str(error).split())
    for name, value in os.environ.items():
        if name.endswith(_SECRET) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "***")
    return f"{type(error).__name__}: {text[:300]}"
