"""How sure a figure is: intervals of 95%, paired differences, exact p-values, pass@k. Plain numpy, all seeded.

A value stands for a question, not for an episode: the samples of one question are alike, so that an interval over
episodes would be too narrow. A bootstrap therefore draws questions ("clustered by question").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from megatron_empg.common.wilson import NORMAL, TAIL, Interval, wilson

POWER = 0.8
"""How often a difference that `resolvable` names would be found."""
DRAWS = 10_000
"""Resamples of a bootstrap: the ends of an interval then move by about a fiftieth of its width with the seed."""
_CELLS = 4_000_000
"""Numbers that a bootstrap holds at once."""

Values = NDArray[np.float64]


def bootstrap_mean(values: Sequence[float], seed: int, draws: int = DRAWS) -> Interval:
    """Percentiles of the mean of so many questions, drawn again and again from those that were asked.

    Equal values make an interval without width: see `share_interval` and `difference_interval`. Raises ValueError
    without values or for one that is not finite.
    """
    levels, counts = np.unique(_checked(values), return_counts=True)
    number = int(counts.sum())
    rng = np.random.default_rng(seed)
    # Questions of one value are alike, so what is drawn is how many of each: thousands of times faster.
    at_once = max(1, _CELLS // len(levels))
    means = []
    for first in range(0, draws, at_once):
        drawn = rng.multinomial(number, counts / number, size=min(at_once, draws - first))
        means.append(drawn @ levels / number)
    low, high = np.quantile(np.concatenate(means), (TAIL, 1 - TAIL))
    return Interval(float(low), float(high))


def share_interval(shares: Sequence[float], seed: int) -> Interval:
    """Interval of the mean of questions' shares of success, or of their pass@k.

    Wilson's where every question is all or nothing, as with one sample each; else a bootstrap over questions.
    """
    if not len(shares):
        return wilson(0, 0)
    values = _checked(shares)
    if np.all((values == 0) | (values == 1)):
        return wilson(int(values.sum()), len(values))
    return bootstrap_mean(shares, seed)


def difference_interval(differences: Sequence[float], seed: int) -> Interval:
    """Interval of the mean of questions' differences between two policies, by a paired bootstrap over questions.

    Where all differences are equal a bootstrap sees no spread. The share of questions that are otherwise is then
    at most `unseen`, and each of these differs by anything from -1 to 1.
    """
    values = _checked(differences)
    if np.any(values != values[0]):
        return bootstrap_mean(values.tolist(), seed)
    same, share = float(values[0]), unseen(len(values))
    down, up = share * (1 + same), share * (1 - same)
    return Interval(same - down, same + up)


def unseen(count: int) -> float:
    """The largest share of questions of which `count` asked ones may well hold none (Clopper-Pearson's bound)."""
    return float(1.0 - TAIL ** (1 / count))


def mcnemar(first_alone: int, second_alone: int) -> float:
    """The exact two-sided p-value of McNemar's test, for one sample per question.

    Of the questions that only one of two policies answered right, so many were the first's and so many the
    second's; were the policies alike, each would be either's by the toss of a coin. Raises ValueError.
    """
    if first_alone < 0 or second_alone < 0:
        raise ValueError(f"{first_alone} and {second_alone} questions: there cannot be fewer than none")
    tossed = first_alone + second_alone
    fewer = min(first_alone, second_alone)
    tail, ways = 0, 1
    for heads in range(fewer + 1):
        tail += ways
        ways = ways * (tossed - heads) // (heads + 1)
    return min(1.0, float(Fraction(2 * tail, 2**tossed)))


def pass_at(k: int, samples: int, successes: int) -> float:
    """The unbiased estimate of the chance that one of `k` samples succeeds (Chen et al. 2021, section 2.1).

    Raises ValueError unless 1 <= k <= samples and 0 <= successes <= samples.
    """
    if not 1 <= k <= samples or not 0 <= successes <= samples:
        raise ValueError(f"pass@{k} of {successes} successes in {samples} samples cannot be")
    return float(1 - Fraction(math.comb(samples - successes, k), math.comb(samples, k)))


def resolvable(differences: Sequence[float]) -> float | None:
    """The true difference of two policies that as many questions would tell apart from none with `POWER`.

    By the spread of the questions' differences that was measured; None where it was none.
    """
    values = _checked(differences)
    if len(values) < 2:
        return None
    spread = float(values.std(ddof=1))
    if spread == 0:
        return None
    return (NORMAL + NormalDist().inv_cdf(POWER)) * spread / math.sqrt(len(values))


def resolvable_at(count: int, discordant: float) -> float:
    """The same before anything is measured, for one sample per question and policies that differ on the share
    `discordant` of the questions; 1 where no difference could be told (Connor 1987). Raises ValueError.
    """
    if count < 1 or not 0 < discordant <= 1:
        raise ValueError(f"{count} questions of which the share {discordant} is answered otherwise cannot be")
    sure, powerful = NORMAL * math.sqrt(discordant), NormalDist().inv_cdf(POWER)

    def found(difference: float) -> bool:
        return math.sqrt(count) * difference >= sure + powerful * math.sqrt(discordant - difference**2)

    # What can be told grows with the difference, which is no larger than the share that differs.
    low, high = 0.0, discordant
    if not found(high):
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def _checked(values: Sequence[float]) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("there is no interval without a question")
    if not np.isfinite(array).all():
        raise ValueError("a value of a question is not a finite number")
    return array
