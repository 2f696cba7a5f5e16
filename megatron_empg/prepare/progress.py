"""How far fetching has come, said now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

EVERY = 15.0
"""Seconds between two lines."""


class FetchProgress:
    """Counts what comes in, from many threads, and says so while it is entered. `expected`: bytes in all."""

    def __init__(self, expected: int, say: Callable[[str], None], every: float = EVERY) -> None:
        self._expected = expected
        self._say = say
        self._every = every
        self._received = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._started = time.monotonic()
        self._teller = threading.Thread(target=self._tell, daemon=True)

    def add(self, size: int) -> None:
        with self._lock:
            self._received += size

    @property
    def bytes_per_second(self) -> float:
        """Since the start; 0 where too little came to tell."""
        seconds = time.monotonic() - self._started
        enough = self._received > 20_000_000 and seconds > 1
        if not enough:
            return 0.0
        return self._received / seconds

    def __enter__(self) -> FetchProgress:
        self._started = time.monotonic()
        self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._teller.join()

    def _tell(self) -> None:
        before = 0
        while not self._ended.wait(self._every):
            received = self._received
            speed = (received - before) / self._every
            before = received
            if not speed:
                continue
            left = max(0, self._expected - received) / speed / 60
            self._say(
                f"{received / 1e9:.2f} of {max(received, self._expected) / 1e9:.1f} GB, {speed / 1e6:.0f} MB/s, "
                f"about {left:.0f} minutes left"
            )
