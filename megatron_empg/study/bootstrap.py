"""How sure a difference of two methods is, over seeds and questions at once.

What is drawn is both: another seed trains another policy, other questions favour other methods. The questions
are the same for all seeds, so that one draw of them holds for every seed that is drawn (crossed, not nested; Owen
2007, "The pigeonhole bootstrap", has the first form of it). The luck of single answers is in the seeds' means
already; it is taken out of the questions' means, or it would count twice.

Percentiles of so few seeds are far too narrow: between the extremes of three lies the truth three times in four,
whatever is drawn. So the draws give a standard error alone, and the interval and the p-value are Student's by it,
with a degree of freedom less than there are seeds. Where seeds agree by chance that would be too narrow: it is
never narrower than the luck of single answers alone makes it. A sign-flip test over seeds would need no such
assumption and cannot be had: with three seeds its smallest p is 1/4, with five 1/16, before any correction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_empg.common.wilson import NORMAL, TAIL, Interval
from megatron_empg.report.table.seeds import student_below, student_quantile

DRAWS = 10_000

Differences = NDArray[np.float64]
"""Method less base, [seeds, questions]; 1, 0 or -1 where each question is asked once."""


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference of two methods, a share, with its interval of 95%; both None for a single seed."""

    mean: float
    seeds: int
    questions: int
    error: float | None
    """The standard error over seeds and questions."""
    interval: Interval | None
    p_value: float | None
    """Two-sided, of this comparison alone."""


def paired_difference(differences: Differences, seed: int = 0) -> PairedDifference:
    """The difference, by so many draws with this seed. Raises ValueError without seeds or questions."""
    if differences.ndim != 2 or not differences.size:
        raise ValueError(
            f"differences have the shape {differences.shape}; they are [seeds, questions], some of each"
        )
    seeds, questions = differences.shape
    mean = float(differences.mean())
    if seeds < 2:
        return PairedDifference(mean, seeds, questions, None, None, None)
    error, luck = standard_error(differences, seed), math.sqrt(_noise(differences))
    reach = max(student_quantile(1 - TAIL, seeds - 1) * error, NORMAL * luck)
    p_value = max(_student_p(mean, error, seeds - 1), _normal_p(mean, luck))
    return PairedDifference(mean, seeds, questions, error, Interval(mean - reach, mean + reach), p_value)


def standard_error(differences: Differences, seed: int = 0) -> float:
    """The standard error of the mean, of at least 2 seeds, by a bootstrap over seeds and questions."""
    rng = np.random.default_rng(seed)
    by_seed = differences.mean(axis=1) - differences.mean()
    by_question = differences.mean(axis=0) - differences.mean()
    shrunk = by_question * _without_noise(by_question, _noise(differences))
    return float((_drawn_means(by_seed, rng) + _drawn_means(shrunk, rng)).std())


def _drawn_means(effects: Differences, rng: np.random.Generator) -> Differences:
    """Means of as many effects as there are, drawn with replacement; spread as those of a population are, of which
    the effects are a sample."""
    count = len(effects)
    if count < 2:
        return np.zeros(DRAWS)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS) / count
    return weights @ effects * math.sqrt(count / (count - 1))


def _noise(differences: Differences) -> float:
    """The variance of the mean by what neither a seed nor a question explains."""
    seeds, questions = differences.shape
    if questions < 2:
        return 0.0
    rest = differences - differences.mean(axis=1, keepdims=True) - differences.mean(axis=0) + differences.mean()
    return float((rest**2).sum()) / ((seeds - 1) * (questions - 1)) / differences.size


def _without_noise(by_question: Differences, noise: float) -> float:
    """The factor of questions' effects that takes the noise out of their variance."""
    count = len(by_question)
    if count < 2:
        return 0.0
    variance = float(by_question.var(ddof=1)) / count
    if variance <= noise:
        return 0.0
    return math.sqrt(1 - noise / variance)


def _student_p(mean: float, error: float, freedom: int) -> float:
    """The chance of a mean at least so far from 0, either way, if there were no difference."""
    if error == 0:
        return float(mean == 0)
    return 2 * (1 - student_below(abs(mean) / error, freedom))


def _normal_p(mean: float, error: float) -> float:
    """The same for an error that is known well."""
    if error == 0:
        return float(mean == 0)
    return math.erfc(abs(mean) / error / math.sqrt(2))
