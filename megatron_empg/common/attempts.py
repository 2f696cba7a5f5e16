"""When a server that does not answer is asked again, within a time that all attempts share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

SHARES = 3
"""The first attempts may take this part of the time: a server that hangs is asked so often, and one that refuses
at once until the time is over, since it may be about to be started again."""
MOST = 1000
"""Attempts, whatever the clock says."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 5.0
"""Seconds, at most; each pause is longer by the first one."""
_PAUSES_WITHIN = 20
"""The first pause is at most this part of the whole time, too."""


@dataclass
class Attempt:
    """`number`, from 1; `seconds` that it may take."""

    number: int
    seconds: float
    _pause: float
    _left: Callable[[], float]
    """Seconds, of all attempts."""
    _last: bool = field(default=False, init=False)

    def pause(self) -> float:
        """Seconds to wait after it has failed; none where no time is left for another one."""
        if self._left() <= self._pause:
            self._last = True
            return 0.0
        return self._pause


def attempts(within: float, longest: float, clock: Callable[[], float] = time.monotonic) -> Iterator[Attempt]:
    """Attempts within so many seconds of the clock, pauses among them, each of at most `longest`; one at least."""
    end = clock() + within

    def left() -> float:
        return end - clock()

    first = min(_FIRST_PAUSE, within / _PAUSES_WITHIN)
    remaining = within
    for number in range(1, MOST + 1):
        share = remaining / max(1, SHARES + 1 - number)
        attempt = Attempt(number, min(longest, share), min(_LONGEST_PAUSE, first * number), left)
        yield attempt
        remaining = left()
        if attempt._last or remaining <= 0:
            return


def all_failed(made: int, failure: str) -> str:
    """What to say when the last one of so many attempts has failed too."""
    if made == 1:
        return f"the only attempt that there was time for failed: {failure}"
    return f"{made} attempts failed, the last one: {failure}"
