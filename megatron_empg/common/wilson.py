"""How sure a share of success is: Wilson's interval, for reports of runs and for evaluations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2
"""The chance that the truth lies above an interval, and that it lies below."""
NORMAL = NormalDist().inv_cdf(1 - TAIL)
"""Standard deviations from the middle to an end."""

WIDE = 0.05
"""Half of an interval above which a share of success is said with it."""


@dataclass(frozen=True)
class Interval:
    """An interval from `low` to `high`, both included."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def wilson(successes: int, count: int) -> Interval:
    """Wilson's interval of a share of `count` independent questions. Everything is possible if `count` is 0.

    Raises ValueError unless 0 <= successes <= count.
    """
    if not 0 <= successes <= count:
        raise ValueError(f"{successes} successes of {count} questions: there cannot be so many")
    if count == 0:
        return Interval(0.0, 1.0)
    share, squared = successes / count, NORMAL**2
    centre = share + squared / (2 * count)
    spread = NORMAL * math.sqrt(share * (1 - share) / count + squared / (4 * count**2))
    scale = 1 + squared / count
    low, high = (centre - spread) / scale, (centre + spread) / scale
    # Exactly so: rounding may leave an end a little on either side.
    if successes == 0:
        low = 0.0
    if successes == count:
        high = 1.0
    return Interval(low, high)
