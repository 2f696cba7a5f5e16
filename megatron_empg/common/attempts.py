"""When a server that does not answer is asked again, within a time that all attempts share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

ATTEMPTS = 3
_LONGEST_PAUSE = 1.0
_PAUSES_WITHIN = 20
"""A first pause is at most this part of the whole time."""


@dataclass(frozen=True)
class Attempt:
    """`seconds` that it may take; `pause`: seconds to wait after it has failed, none after the last."""

    seconds: float
    pause: float


def attempts(within: float, longest: float, clock: Callable[[], float] = time.monotonic) -> Iterator[Attempt]:
    """Up to `ATTEMPTS` within so many seconds of the clock, pauses among them, each of at most `longest`.

    What is left is shared by those to come, so that a server that hangs is asked again.
    """
    end = clock() + within
    for number in range(1, ATTEMPTS + 1):
        left = end - clock()
        if left <= 0:
            return
        pause = min(_LONGEST_PAUSE, within / _PAUSES_WITHIN) * number if number < ATTEMPTS else 0.0
        yield Attempt(min(longest, left / (ATTEMPTS + 1 - number)), pause)
