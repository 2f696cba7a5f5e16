"""When a server that does not answer is asked again, within a time that all attempts share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

ATTEMPTS = 3
_FIRST_PAUSE = 1.0
"""Seconds of the first pause, at most; each later one is longer by as much."""
_PAUSES_WITHIN = 20
"""The first pause is at most this part of the whole time, too."""


@dataclass(frozen=True)
class Attempt:
    """`number`, from 1; `seconds` that it may take; `pause`: seconds to wait after it has failed, none after the
    last."""

    number: int
    seconds: float
    pause: float


def attempts(within: float, longest: float, clock: Callable[[], float] = time.monotonic) -> Iterator[Attempt]:
    """One to `ATTEMPTS` within so many seconds of the clock, pauses among them, each of at most `longest`.

    What is left is shared by those to come, so that a server that hangs is asked again.
    """
    end, left = clock() + within, within
    for number in range(1, ATTEMPTS + 1):
        pause = 0.0
        if number < ATTEMPTS:
            pause = min(_FIRST_PAUSE, within / _PAUSES_WITHIN) * number
        yield Attempt(number, min(longest, left / (ATTEMPTS + 1 - number)), pause)
        left = end - clock()
        if left <= 0:
            return


def all_failed(made: int, failure: str) -> str:
    """What to say when the last one of so many attempts has failed too: there may be no time for `ATTEMPTS`."""
    if made == 1:
        return f"the only attempt that there was time for failed: {failure}"
    return f"{made} attempts failed, the last one: {failure}"
