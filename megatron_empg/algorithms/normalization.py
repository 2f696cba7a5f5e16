"""From turn entropies in nats to H_norm in [0, 1]: 0 is the surest turn of the batch, 1 the least sure.

Three ways: by the extremes (minmax, the paper's), which one outlier stretches; by the 5% and 95% quantiles, which
outliers leave alone; and by rank, which keeps the order alone. All three count each turn once, and give 0
throughout where there is no spread: no turn, one turn, all entropies equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from megatron_empg.common.lazy_torch import torch
from megatron_empg.common.ranks import RankGroup, max_over_ranks_

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int
    from torch import Tensor

RANGE_EPS = 1e-8  # the paper's epsilon in the min-max normalisation
ROUNDING = 1e-6  # an entropy this far below zero is zero, rounded
LOW, HIGH = 0.05, 0.95  # quantiles that stand for the extremes; chosen here

Normalization = Literal["minmax", "quantile", "rank"]


def normalized_entropy(
    entropies: Float[Tensor, "turns"], how: Normalization = "minmax", group: RankGroup | None = None
) -> Float[Tensor, "turns"]:
    """H_norm in float64.

    ``group`` is for minmax alone: the others read the whole batch, which every rank holds, on the CPU.
    """
    if how == "minmax":
        return by_extremes(entropies, group)
    if how == "quantile":
        return by_quantiles(entropies)
    return by_rank(entropies)


def by_extremes(entropies: Float[Tensor, "turns"], group: RankGroup | None = None) -> Float[Tensor, "turns"]:
    """``(H - min) / (max - min + 1e-8)`` in float64, over the turns of all ranks of ``group``."""
    values = entropies.double()
    # One collective for both: the minimum is the maximum of the negated. A rank without turns gives -inf.
    extremes = values.new_full((2,), -math.inf)
    if len(values):
        low, high = values.aminmax()
        extremes = torch.stack([-low, high])
    negated_low, high = max_over_ranks_(extremes, group)
    return (values + negated_low).div_(high + negated_low + RANGE_EPS)


def by_quantiles(entropies: Float[Tensor, "turns"]) -> Float[Tensor, "turns"]:
    """``(H - q05) / (q95 - q05 + 1e-8)``, clamped to [0, 1], in float64; 0 where both quantiles are equal.

    A tenth of the turns ends at 0 or 1.
    """
    values = entropies.double()
    if not len(values):
        return values
    low, high = (quantile.value for quantile in quantiles(values))
    if low == high:
        return torch.zeros_like(values)
    return ((values - low) / (high - low + RANGE_EPS)).clamp_(0, 1)


def by_rank(entropies: Float[Tensor, "turns"]) -> Float[Tensor, "turns"]:
    """``rank / (turns - 1)`` in float64, ranks ascending from 0; equal entropies share their mean rank.

    The mean of H_norm is 1/2, except where all are equal: they are 0, as in the other normalisations.
    """
    values = entropies.double()
    order = torch.from_numpy(values.numpy().argsort())
    _, counts = values[order].unique_consecutive(return_counts=True)
    if len(counts) < 2:
        return torch.zeros_like(values)
    mean_ranks = counts.cumsum(0) - (counts.double() + 1) / 2
    ranks = torch.empty_like(values)
    ranks[order] = mean_ranks.repeat_interleave(counts)
    return ranks.div_(len(values) - 1)


def by_extremes_of_sets(
    entropies: Float[Tensor, "turns"], sets: Int[Tensor, "turns"], count: int
) -> Float[Tensor, "turns"]:
    """`by_extremes` within sets: each turn beside those of its own set. ``sets`` are numbers below ``count``."""
    values = entropies.double()
    low = values.new_full((count,), math.inf).scatter_reduce(0, sets, values, "amin")
    high = values.new_full((count,), -math.inf).scatter_reduce(0, sets, values, "amax")
    return (values - low[sets]) / (high - low + RANGE_EPS)[sets]


@dataclass(frozen=True)
class Quantile:
    """A quantile as the two values around it in order, between which it is interpolated linearly."""

    below: float
    above: float
    way: float
    """How far it is from the first to the second, in [0, 1)."""

    @property
    def value(self) -> float:
        return self.below + (self.above - self.below) * self.way

    def map(self, function: Callable[[float], float]) -> float:
        """The same turns' quantile of a number that rises or falls with this one throughout."""
        return replace(self, below=function(self.below), above=function(self.above)).value


def quantiles(values: Float[Tensor, "turns"]) -> tuple[Quantile, Quantile]:
    """The 5% and 95% quantiles. There must be a turn."""
    scratch = values.double().clone().numpy()
    return _quantile(scratch, LOW), _quantile(scratch, HIGH)


def _quantile(values: np.ndarray, share: float) -> Quantile:
    """One quantile. Changes the order of ``values``."""
    place = share * (len(values) - 1)
    below = math.floor(place)
    # numpy selects one place several times faster than torch, or than the two that np.quantile asks it for.
    values.partition(below)
    first = values[below]
    if below + 1 < len(values):
        following = values[below + 1 :].min()
    else:
        following = first
    return Quantile(float(first), float(following), place - below)


class Spread(NamedTuple):
    """How widely a number is spread over the turns of a batch."""

    std: float
    """Around the mean, without Bessel's correction: 0 for one turn."""
    q05: float
    q95: float


def spread(values: Float[Tensor, "turns"]) -> Spread:
    """The spread of one number per turn, of which there must be one at least."""
    low, high = quantiles(values)
    return Spread(deviation(values), low.value, high.value)


def deviation(values: Float[Tensor, "turns"]) -> float:
    """The standard deviation around the mean, without Bessel's correction: 0 for one turn."""
    return float(values.double().std(correction=0))


def fault_in(name: str, values: Float[Tensor, "turns"], lowest: float = -math.inf) -> str | None:
    """What is wrong with numbers that must be finite and at least ``lowest`` (but for rounding), or None."""
    if not len(values):
        return None
    # One pass tells that all is well, which it nearly always is: the minimum of what holds a NaN is NaN.
    low, high = values.aminmax()
    if low >= lowest - ROUNDING and low.isfinite() and high.isfinite():
        return None
    good = values.isfinite() & (values >= lowest - ROUNDING)
    position = int((~good).nonzero()[0])
    wanted = "finite and not negative"
    if lowest == -math.inf:
        wanted = "finite"
    return f"{name}[{position}] is {values[position].item()}; {name} must be {wanted}"
