"""What the papers on entropy and credit measure, as pure functions: a dict of metrics, or a small table.

EMPG (arXiv 2509.09265) shows how entropies change by their first value, how gradients depend on entropy, and how
far H_norm, g and the bonus reach. AEM (arXiv 2605.00425) shows which turns it amplifies, and that the entropy's
drift goes with advantage times relative surprisal. A metric that a batch says nothing of is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_empg.algorithms.normalization import fault_in, spread
from megatron_empg.common.lazy_torch import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from megatron_empg.algorithms.base import Credit, Experience, ModulatedAdvantages, Scores

BINS = 10
"""Chosen here."""


@dataclass(frozen=True)
class QuantileBin:
    """A row of a table: what lies between two quantiles of a number, and the mean of another number over it."""

    number: int
    """The bin's number, from 0, in ascending order. A bin that equal values leave empty has no row."""
    low: float
    """The smallest value in it."""
    high: float
    """The largest value in it."""
    count: int
    mean: float


def batch_diagnostics(experience: Experience, scores: Scores, credit: Credit) -> dict[str, float]:
    """All metrics of this file that one batch and its scores give, but those that EMPG gives by other names."""
    metrics = advantage_times_relative_surprisal(experience, scores, credit)
    # EMPG's own metrics have the spread and the mean advantages already.
    told = any(name.startswith("empg/") for name in credit.metrics)
    if not told:
        metrics |= token_weighted_advantage(experience, credit)
    if credit.modulated is not None:
        if not told:
            metrics |= modulation_spread(credit.modulated)
        metrics |= bonus_ratio(credit, credit.modulated)
        metrics |= amplified_and_damped(experience, credit.modulated)
    return metrics


def entropy_change(
    before: Float[Tensor, "turns"], after: Float[Tensor, "turns"], bins: int = BINS
) -> tuple[list[QuantileBin], dict[str, float]]:
    """Mean ``after - before`` of the same turns' entropies in nats, in bins of equally many turns by ``before``.

    The metrics are ``diagnostics/entropy_change`` over all turns and ``…_bin_0`` and so on. Raises ValueError for
    lengths that differ and values that are not finite.
    """
    _check({"entropies before": before, "entropies after": after})
    change = after.double() - before.double()
    return _binned("entropy_change", before, change, bins)


def gradient_norms_by_entropy(
    norms: Float[Tensor, "turns"], entropies: Float[Tensor, "turns"], bins: int = BINS
) -> tuple[list[QuantileBin], dict[str, float]]:
    """Mean norm of the gradient that each turn alone would give, in bins of equally many turns by entropy in nats.

    The metrics are ``diagnostics/gradient_norm`` over all turns and ``…_bin_0`` and so on. Raises ValueError for
    lengths that differ and values that are not finite.
    """
    _check({"gradient norms": norms, "entropies": entropies})
    return _binned("gradient_norm", entropies, norms, bins)


def advantage_times_relative_surprisal(experience: Experience, scores: Scores, credit: Credit) -> dict[str, float]:
    """Mean of ``A·(-log p - H)`` over the own tokens that the loss sees, with A as trained on.

    Above 0 the batch pushes entropy up: it favours tokens more surprising than their distribution is on average.
    """
    advantages = credit.turns.double().repeat_interleave(experience.turn_lengths)
    relative = -scores.logprobs.double() - scores.entropies.double()
    seen = (advantages * relative)[credit.kept]
    if not len(seen):
        return {}
    return {"diagnostics/advantage_times_relative_surprisal": float(seen.mean())}


def token_weighted_advantage(experience: Experience, credit: Credit) -> dict[str, float]:
    """The mean final advantage of a turn, and of an own token, masked ones included."""
    lengths, advantages = experience.turn_lengths.double(), credit.turns.double()
    if not len(lengths):
        return {}
    return {
        "diagnostics/advantage_turn_mean": float(advantages.mean()),
        "diagnostics/advantage_token_mean": float(advantages.dot(lengths) / lengths.sum()),
    }


def modulation_spread(modulated: ModulatedAdvantages) -> dict[str, float]:
    """Standard deviation, 5% and 95% quantile over turns of H_norm and of the scale, as AEM's alpha."""
    if not len(modulated.scale):
        return {}
    metrics = {}
    for name, values in (("h_norm", modulated.h_norm), ("scale", modulated.scale)):
        for part, value in spread(values)._asdict().items():
            metrics[f"diagnostics/{name}_{part}"] = value
    return metrics


def bonus_ratio(credit: Credit, modulated: ModulatedAdvantages) -> dict[str, float]:
    """Mean |bonus| of a turn by its mean |advantage| before modulation; left out where all advantages are 0."""
    size = credit.advantages.turns.double().abs().sum()
    if size == 0:
        return {}
    return {"diagnostics/bonus_ratio": float(modulated.bonus.double().abs().sum() / size)}


def amplified_and_damped(
    experience: Experience, modulated: ModulatedAdvantages, right_above: float = 0.0
) -> dict[str, float]:
    """Shares of turns with a scale above and below 1, among right episodes and among wrong ones.

    An episode is right whose reward is more than ``right_above``.
    """
    right = (experience.rewards > right_above)[experience.episode_of_turn]
    return _shares("right", modulated.scale[right]) | _shares("wrong", modulated.scale[~right])


def _shares(name: str, scale: Float[Tensor, "turns"]) -> dict[str, float]:
    if not len(scale):
        return {}
    return {
        f"diagnostics/amplified_turns_{name}": float((scale > 1).double().mean()),
        f"diagnostics/damped_turns_{name}": float((scale < 1).double().mean()),
    }


def _binned(name: str, key: Tensor, values: Tensor, bins: int) -> tuple[list[QuantileBin], dict[str, float]]:
    """Means of ``values`` in bins by the quantiles of ``key``, and the same as metrics."""
    if bins < 1:
        raise ValueError(f"bins is {bins}; there must be 1 at least")
    if not len(key):
        return [], {}
    key, values = key.double(), values.double()
    bin_of_turn = quantile_bins(key, bins)
    metrics = {f"diagnostics/{name}": float(values.mean())}
    table = []
    for number in range(bins):
        inside = bin_of_turn == number
        if inside.any():
            row = _row(number, key[inside], values[inside])
            table.append(row)
            metrics[f"diagnostics/{name}_bin_{number}"] = row.mean
    return table, metrics


def quantile_bins(key: Float[Tensor, "turns"], bins: int) -> Int[Tensor, "turns"]:
    """The bin of each turn: how many of the inner quantiles 1/bins, 2/bins … its value reaches.

    Equal values are in the same bin.
    """
    ordered = key.sort().values
    places = torch.arange(1, bins) * len(key) // bins
    return torch.searchsorted(ordered[places], key, right=True)


def _row(number: int, key: Tensor, values: Tensor) -> QuantileBin:
    return QuantileBin(number, float(key.min()), float(key.max()), len(key), float(values.mean()))


def _check(given: dict[str, Tensor]) -> None:
    """Raise ValueError unless all are finite numbers over the same turns."""
    lengths = {name: tuple(values.shape) for name, values in given.items()}
    if len(set(lengths.values())) > 1 or any(values.ndim != 1 for values in given.values()):
        raise ValueError(f"shapes are {lengths}; all must be [turns] of the same turns")
    for name, values in given.items():
        fault = fault_in(name, values)
        if fault is not None:
            raise ValueError(fault)
