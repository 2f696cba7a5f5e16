"""How many seeds a difference needs to be seen, by the spread of the base's seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

from megatron_empg.common.wilson import TAIL
from megatron_empg.report.table.seeds import student_quantile

POWER = 0.8
"""How often a difference that is there would be found."""
MOST = 200
"""Seeds; more are not counted."""


def seeds_needed(difference: float, spread: float) -> int | None:
    """Seeds of each method with which a t-test of paired differences finds a difference of means with `POWER`.

    `spread` is the standard deviation over the base's seeds. The method's is taken to be as large, and a common
    seed to make the two no more alike, so that differences are spread by √2 of it. None where `MOST` do not do.
    Raises ValueError for a difference that is not above 0, or a spread below 0.
    """
    if difference <= 0 or spread < 0:
        raise ValueError(f"a difference of {difference} and a spread of {spread} cannot be; the first is above 0")
    ratio = math.inf
    if spread:
        ratio = difference / (math.sqrt(2) * spread)
    for seeds in range(2, MOST + 1):
        freedom = seeds - 1
        needed = student_quantile(1 - TAIL, freedom) + student_quantile(POWER, freedom)
        if math.sqrt(seeds) * ratio >= needed:
            return seeds
    return None


def spread_of(successes: Sequence[float]) -> float | None:
    """The standard deviation over seeds; None for fewer than two."""
    if len(successes) < 2:
        return None
    return stdev(successes)
