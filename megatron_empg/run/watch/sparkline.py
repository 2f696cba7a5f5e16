"""A curve in one line of text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-~=+*#"
"""The same for terminals without those letters."""


def sparkline(values: Sequence[float], width: int, *, ramp: str = BLOCKS) -> str:
    """At most `width` letters. The first stands for the first values, the highest for the largest mean.

    Example: sparkline([0, 1, 2], 10) is "▁▅█". Equal values are all the lowest letter.
    """
    if not values or width < 1:
        return ""
    means = [sum(part) / len(part) for part in _parts(values, min(width, len(values)))]
    low, high = min(means), max(means)
    if high <= low:
        return ramp[0] * len(means)
    return "".join(ramp[round((mean - low) / (high - low) * (len(ramp) - 1))] for mean in means)


def _parts(values: Sequence[float], count: int) -> list[Sequence[float]]:
    """`count` neighbouring parts of nearly equal length, none empty."""
    marks = [round(index * len(values) / count) for index in range(count + 1)]
    return [values[first:last] for first, last in pairwise(marks)]
