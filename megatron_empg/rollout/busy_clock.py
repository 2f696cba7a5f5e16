"""How long something has been the case: that anything is at work, or any other condition."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class BusyClock:
    """Adds up the seconds in which a condition held.

    Without a `condition` it is that at least one piece of `work` is under way; of any other one `note` is told
    before anything changes that it depends on. `clock`: seconds, of any beginning.
    """

    def __init__(
        self, condition: Callable[[], bool] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._condition = condition or self._works
        self._clock = clock
        self._at_work = 0
        self._noted = clock()
        self._seconds = 0.0

    @contextmanager
    def work(self) -> Iterator[None]:
        """One piece of work; it ends however the block does."""
        self.note()
        self._at_work += 1
        try:
            yield
        finally:
            self.note()
            self._at_work -= 1

    def note(self) -> None:
        """What holds now has held since the last note."""
        now = self._clock()
        if self._condition():
            self._seconds += now - self._noted
        self._noted = now

    def restart(self) -> None:
        """Count from 0 again."""
        self.note()
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds counted until now."""
        self.note()
        return self._seconds

    def _works(self) -> bool:
        return self._at_work > 0
