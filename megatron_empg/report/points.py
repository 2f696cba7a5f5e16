"""Series of (step, value): thinned, smoothed, paired."""

from statistics import fmean
from typing import NamedTuple

Points = list[tuple[float, float]]
MOST = 300
"""Points of a line, so that a long run stays a small page."""


class Range(NamedTuple):
    """What lies between two series at a step."""

    step: float
    low: float
    high: float


def thin(points: Points, most: int = MOST) -> Points:
    """At most so many points: means of neighbours."""
    size = -(-len(points) // most)
    if size <= 1:
        return points
    means = []
    for start in range(0, len(points), size):
        steps, values = zip(*points[start : start + size], strict=True)
        means.append((fmean(steps), fmean(values)))
    return means


def smooth(points: Points, window: int) -> Points:
    """Centred moving mean over ``window`` neighbours, fewer at the ends."""
    half = window // 2
    values = [value for _, value in points]
    result = []
    for index, (step, _) in enumerate(points):
        reach = min(half, index, len(values) - 1 - index)
        result.append((step, fmean(values[index - reach : index + reach + 1])))
    return result


def ranges(low: Points, high: Points, most: int = MOST) -> list[Range]:
    """Where both series were measured, thinned as lines are."""
    lows, highs = dict(low), dict(high)
    both = [step for step in lows if step in highs]
    below = thin([(step, lows[step]) for step in both], most)
    above = thin([(step, highs[step]) for step in both], most)
    return [Range(step, bottom, top) for (step, bottom), (_, top) in zip(below, above, strict=True)]
