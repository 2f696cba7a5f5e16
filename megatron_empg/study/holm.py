"""Holm's correction (1979) of several comparisons' p-values.

Any false alarm among all of them is then as rare as one alone would be.
"""

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """The corrected p-values, in the order given: the smallest times their number, the next times one less, never
    below one before, at most 1.

    >>> holm([0.03, 0.01])
    [0.03, 0.02]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, (len(p_values) - place) * p_values[index])
        corrected[index] = min(largest, 1.0)
    return corrected
