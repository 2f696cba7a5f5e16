"""The clock of a simulation: what happens next, and when."""

import heapq
from collections.abc import Callable


class EventQueue:
    """Calls what was asked for, in the order of time; what falls on one time, in the order in which it was asked.

    Example::

        clock = EventQueue()
        clock.after(2.0, lambda: print(clock.now))  # seconds
        clock.run(until=lambda: False)  # prints 2.0, and returns since nothing is left
    """

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the beginning."""
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._asked = 0

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Have something called so many seconds from now. Raises ValueError for a time that has passed."""
        if not seconds >= 0:
            raise ValueError(f"an event is asked for {seconds} s from now; it must be 0 or more")
        self._asked += 1
        heapq.heappush(self._waiting, (self.now + seconds, self._asked, call))

    def run(self, until: Callable[[], bool]) -> None:
        """Go on until `until` says so after an event, or nothing is left to happen."""
        while self._waiting and not until():
            self.now, _, call = heapq.heappop(self._waiting)
            call()
