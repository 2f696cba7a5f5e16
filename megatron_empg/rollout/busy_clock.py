"""How long something has been at work, where several things may ask for it at once."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class BusyClock:
    """Counts the seconds in which at least one piece of work was under way. `clock`: seconds, of any beginning."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at_work = 0
        self._since = 0.0
        self._ended = 0.0

    @contextmanager
    def work(self) -> Iterator[None]:
        """One piece of work; it ends however the block does."""
        if self._at_work == 0:
            self._since = self._clock()
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1
            if self._at_work == 0:
                self._ended += self._clock() - self._since

    @property
    def seconds(self) -> float:
        """Until now, work that goes on included."""
        going_on = self._clock() - self._since if self._at_work else 0.0
        return self._ended + going_on
