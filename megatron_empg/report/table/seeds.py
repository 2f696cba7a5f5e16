"""How sure a mean over seeds is, and a difference of two; intervals of 95%, in plain Python.

A run is a draw of its own: two seeds tell nothing of a third but by their spread. So an interval over seeds is
Student's, wide for few of them. It covers the luck of training; one over the questions of a single run does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

from megatron_empg.common.wilson import TAIL, Interval


def student_interval(values: Sequence[float]) -> Interval:
    """Interval of the mean of at least two values, by Student's t. Raises ValueError for fewer.

    Equal values make an interval without width: so few seeds may well agree.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} values have no spread; an interval over seeds takes at least 2")
    middle = mean(values)
    reach = student_quantile(1 - TAIL, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(middle - reach, middle + reach)


def student_quantile(probability: float, freedom: int) -> float:
    """The value that Student's t with so many degrees of freedom stays below with a probability in (0.5, 1)."""
    low, high = 0.0, 1.0
    while student_below(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if student_below(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return high


def student_below(value: float, freedom: int) -> float:
    """The chance that Student's t is below a value of at least 0 (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(value / math.sqrt(freedom))
    squared = math.cos(angle) ** 2
    if freedom % 2:
        first, term = angle, math.sin(angle) * math.cos(angle)
        steps = range(3, freedom, 2)
        share = 2 / math.pi
    else:
        first, term = 0.0, math.sin(angle)
        steps = range(2, freedom, 2)
        share = 1.0
    total = first + (term if freedom > 1 else 0.0)
    for step in steps:
        term *= (step - 1) / step * squared
        total += term
    return 0.5 + share * total / 2


def newcombe(first: float, first_interval: Interval, second: float, second_interval: Interval) -> Interval:
    """Interval of `second - first`, shares of different questions, from their Wilson intervals (Newcombe 1998).

    On the same questions it is rather too wide, since one that is hard for the first is hard for the second too.
    """
    difference = second - first
    below = math.hypot(second - second_interval.low, first_interval.high - first)
    above = math.hypot(second_interval.high - second, first - first_interval.low)
    return Interval(difference - below, difference + above)


def within(interval: Interval, low: float, high: float) -> Interval:
    """The part of an interval where its value can lie at all."""
    return Interval(max(interval.low, low), min(interval.high, high))
