"""Entropy-Modulated Policy Gradients (arXiv 2509.09265): one trajectory advantage becomes turn advantages.

A confident turn (low entropy) takes more of its trajectory's advantage, right or wrong; an uncertain one less
(self-calibrating gradient scaling, g). A turn that leads to a clearer one earns a bonus (future clarity, f).
The paper calls a turn a step.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from megatron_empg.algorithms.automatic import EmpgTargets
from megatron_empg.algorithms.base import ModulatedAdvantages
from megatron_empg.algorithms.normalization import (
    Normalization,
    Quantile,
    deviation,
    fault_in,
    normalized_entropy,
    quantiles,
)
from megatron_empg.common.lazy_torch import torch, without_gradient
from megatron_empg.common.ranks import RankGroup, raise_together, sum_over_ranks_
from megatron_empg.common.section import Coefficient, NonNegativeCoefficient, Section

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from megatron_empg.algorithms.base import Experience


class Empg(Section):
    """Constants of arXiv 2509.09265; the defaults of k, k_f and zeta are those of the authors' page."""

    name: Literal["empg"] = "empg"
    k: NonNegativeCoefficient = 1.0
    """Strength of gradient scaling, g(H) = exp(-k H_norm) / mean exp(-k H_norm)."""
    k_f: NonNegativeCoefficient = 1.0
    """Sharpness of the future-clarity bonus, f(H) = exp(-k_f H_norm)."""
    zeta: Coefficient = 0.1
    """Weight of the bonus for a turn that leads to a clearer state."""
    center: bool = True
    """Subtract the mean over the batch's turns after modulation."""
    normalize: Normalization = "minmax"
    """H_norm by the batch's extremes (the paper's); by its 5% and 95% quantiles, clamped to [0, 1]; or by rank.
    The last two are chosen here: one outlier moves neither."""
    weights: Literal["turn", "token"] = "turn"
    """Whether the means of exp(-k H_norm) and of the centring count turns equally (the paper's), or by their own
    tokens (chosen here), as a loss that is a mean over tokens does: then g leaves the mean factor of a token 1,
    and the mean advantage of a token is 0. With `algorithm.loss_mean` sequence, which gspo and sampo have, a token
    of a short episode weighs more in the loss than here."""
    target_scale_ratio: Annotated[float, Field(ge=1, le=1000)] | None = None
    """Sets k from the second batch on: the 95% quantile of g is so many times its 5% quantile, by the spread of
    H_norm in past batches. Chosen here, as the next one."""
    target_bonus_ratio: Annotated[float, Field(ge=0, le=10)] | None = None
    """Sets zeta from the second batch on: the mean |bonus| is so many times the mean |advantage| before
    modulation, as past batches had it."""
    reverse: bool = False
    """The control of a mechanism, chosen here: 1 - H_norm stands in the place of H_norm in g, in f and in the
    metrics, so that unsure turns are amplified and earn the bonus, by as much as sure ones without it."""

    def make(self) -> EmpgModulation:
        return EmpgModulation(self)


class ModulationTerms(NamedTuple):
    """Each turn's advantage and its parts: ``advantage = A·g + bonus - (mean over turns)``."""

    h_norm: Float[Tensor, "turns"]
    """Turn entropy, normalised over the batch: 0 is the surest turn, 1 the least sure."""
    g: Float[Tensor, "turns"]
    """Scale of the trajectory advantage; its mean over the batch is 1."""
    bonus: Float[Tensor, "turns"]
    """zeta·f(H of the next turn); 0 at the last turn of a trajectory."""
    advantage: Float[Tensor, "turns"]
    """The final advantage of the turn's tokens."""


def modulate_advantages(
    advantages: Float[Tensor, "turns"],
    entropies: Float[Tensor, "turns"],
    trajectory_ids: Int[Tensor, "turns"],
    *,
    k: float = 1.0,
    k_f: float = 1.0,
    zeta: float = 0.1,
    center: bool = True,
    group: RankGroup | None = None,
) -> Float[Tensor, "turns"]:
    """The final turn advantages of `modulation`, whose arguments and errors these are."""
    return modulation(
        advantages, entropies, trajectory_ids, k=k, k_f=k_f, zeta=zeta, center=center, group=group
    ).advantage


@without_gradient
def modulation(
    advantages: Float[Tensor, "turns"],
    entropies: Float[Tensor, "turns"],
    trajectory_ids: Int[Tensor, "turns"],
    *,
    k: float = 1.0,
    k_f: float = 1.0,
    zeta: float = 0.1,
    center: bool = True,
    group: RankGroup | None = None,
) -> ModulationTerms:
    """Modulate trajectory advantages by turn entropies (the paper's equations 5 to 8).

    ``advantages`` holds the trajectory's advantage at each of its turns, ``entropies`` (nats) the mean token
    entropy of each turn; a trajectory's turns are contiguous, in order, and all on one rank. Minimum, maximum
    and means are over all turns of all ranks of ``group``: every rank must call, with no turns too. Without a
    spread of entropies (no turn, one turn, all equal) H_norm is 0. Computed in float64, returned in the dtype
    of ``advantages``; with k = 0, zeta = 0 and no centring they come back bit for bit.

    Raises ValueError, on every rank, for wrong shapes, non-finite values, negative entropies, trajectories
    whose turns are scattered, or a negative k.
    """
    fault = _fault_in_constants(k, k_f, zeta) or _fault(advantages, entropies, trajectory_ids)
    raise_together(fault, group, advantages.device)
    h_norm = normalized_entropy(entropies, "minmax", group)
    clarity = future_clarity(h_norm, trajectory_ids, k_f)
    parts = _combined(advantages, h_norm, clarity, k=k, zeta=zeta, center=center, group=group)
    return ModulationTerms(*(part.to(advantages.dtype) for part in parts))


def _combined(
    advantages: Tensor,
    h_norm: Tensor,
    clarity: Tensor,
    *,
    k: float,
    zeta: float,
    center: bool,
    weights: Tensor | None = None,
    group: RankGroup | None = None,
) -> ModulationTerms:
    """The paper's equations after H_norm and f, in float64; ``weights`` are those of both means, None for equal.

    ``clarity`` becomes the bonus.
    """
    # In place: for many turns a fresh tensor's memory takes longer than the arithmetic in it.
    g = (-k * h_norm).exp_()
    g /= _mean(g, weights, group)
    bonus = clarity.mul_(zeta)
    modulated = advantages.double() * g
    modulated += bonus
    if center:
        modulated -= _mean(modulated, weights, group)
    return ModulationTerms(h_norm, g, bonus, modulated)


def _mean(values: Tensor, weights: Tensor | None, group: RankGroup | None = None) -> Tensor:
    """Mean over the turns of all ranks of ``group``."""
    if weights is None:
        sums = torch.stack([values.sum(), values.new_tensor(float(len(values)))])
    else:
        sums = torch.stack([values.dot(weights), weights.sum()])
    total, weight = sum_over_ranks_(sums, group)
    return total / weight


def future_clarity(
    h_norm: Float[Tensor, "turns"], trajectory_ids: Int[Tensor, "turns"], k_f: float
) -> Float[Tensor, "turns"]:
    """f: ``exp(-k_f·H_norm)`` of the next turn; 0 at the last turn of a trajectory."""
    clarity = torch.zeros_like(h_norm)
    torch.mul(h_norm[1:], -k_f, out=clarity[:-1])
    return clarity.exp_().index_fill_(0, last_turns(trajectory_ids), 0.0)


def last_turns(trajectory_ids: Int[Tensor, "turns"]) -> Int[Tensor, "trajectories"]:
    """True for the last turn of each trajectory."""
    _, turns = trajectory_ids.unique_consecutive(return_counts=True)
    return turns.cumsum(0) - 1


class EmpgModulation:
    """EMPG over the batches of a run: `Empg`'s constants, or those that its targets ask for."""

    def __init__(self, section: Empg) -> None:
        self.section = section
        self.targets = EmpgTargets(section.target_scale_ratio, section.target_bonus_ratio)

    @without_gradient
    def modulate(
        self, advantages: Float[Tensor, "turns"], entropies: Float[Tensor, "turns"], experience: Experience
    ) -> ModulatedAdvantages:
        """Apply `modulation` to the whole batch, which every rank holds. Raises ValueError as it does."""
        section, trajectories, lengths = self.section, experience.episode_of_turn, experience.turn_lengths.double()
        fault = _fault(advantages, entropies, trajectories) or _fault_in_lengths(lengths, advantages)
        if fault is not None:
            raise ValueError(fault)
        if not len(advantages):
            return ModulatedAdvantages(advantages, h_norm=advantages, scale=advantages, bonus=advantages)
        k, zeta = self.targets.k(section.k), self.targets.zeta(section.zeta)
        weights = None
        if section.weights == "token":
            weights = lengths
        h_norm = normalized_entropy(entropies, section.normalize)
        if section.reverse:
            h_norm = 1 - h_norm
        clarity = future_clarity(h_norm, trajectories, section.k_f)
        low, high = quantiles(h_norm)
        if self.targets.present:
            self.targets.observe(
                entropy_spread=high.value - low.value,
                advantage_size=float(_mean(advantages.double().abs(), weights)),
                clarity=float(_mean(clarity, weights)),
            )
        parts = _combined(advantages, h_norm, clarity, k=k, zeta=zeta, center=section.center, weights=weights)
        metrics = {"empg/k": k, "empg/zeta": zeta}
        metrics |= turn_metrics(parts, low, high, k) | token_metrics(parts, advantages, lengths, section)
        h_norm, g, bonus, final = (part.to(advantages.dtype) for part in parts)
        return ModulatedAdvantages(final, h_norm=h_norm, scale=g, bonus=bonus, metrics=metrics)

    def state_dict(self) -> dict[str, Any]:
        """The running statistics of the targets, as JSON; nothing without targets."""
        return self.targets.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.targets.load_state_dict(state)


def turn_metrics(parts: ModulationTerms, low: Quantile, high: Quantile, k: float) -> dict[str, float]:
    """Means, extremes and spread over turns, each counted once; ``low`` and ``high`` are quantiles of H_norm."""
    lowest, highest = parts.g.aminmax()
    # g(H) is exp(-k H) by the batch's mean of it. So any turn's g gives that of every other H_norm by a ratio, in
    # which the mean cancels out. Turn 0 is one that every batch has.
    one_h, one_g = float(parts.h_norm[0]), float(parts.g[0])

    def g(h_norm: float) -> float:
        """g at any H_norm, from its value at one H_norm of the batch."""
        return one_g * math.exp(k * (one_h - h_norm))

    of_h_norm = {
        "empg/h_norm_mean": float(parts.h_norm.mean()),
        "empg/h_norm_std": deviation(parts.h_norm),
        "empg/h_norm_q05": low.value,
        "empg/h_norm_q95": high.value,
    }
    of_g = {
        "empg/g_min": float(lowest),
        "empg/g_max": float(highest),
        "empg/g_std": deviation(parts.g),
        "empg/g_q05": high.map(g),  # as k is 0 or more, g never rises with H_norm
        "empg/g_q95": low.map(g),
    }
    bonus, advantage = float(parts.bonus.mean()), float(parts.advantage.mean())
    return {**of_h_norm, **of_g, "empg/bonus_mean": bonus, "empg/advantage_mean": advantage}


def token_metrics(parts: ModulationTerms, advantages: Tensor, lengths: Tensor, section: Empg) -> dict[str, float]:
    """The modulation by tokens, over which many losses average, where the statistics are over turns.

    Every own token of the batch counts, masked ones too. ``advantages`` are those before the modulation,
    ``lengths`` each turn's own tokens.
    """
    metrics = {
        "empg/advantage_token_mean": float(_mean(parts.advantage, lengths)),
        "empg/bonus_only_tokens": float(_mean((advantages == 0).double(), lengths)),
    }
    # What centring takes away in all is the sum of the two parts' means.
    part = advantages.double() * parts.g
    from_advantage = _token_size(part.sub_(_center(part, lengths, section)), lengths)
    torch.sub(parts.bonus, _center(parts.bonus, lengths, section), out=part)
    from_bonus = _token_size(part, lengths)
    if from_advantage + from_bonus > 0:
        metrics["empg/bonus_share"] = from_bonus / (from_advantage + from_bonus)
    return metrics


def _center(part: Tensor, lengths: Tensor, section: Empg) -> Tensor:
    """What centring takes away from a part of the advantage."""
    if not section.center:
        return part.new_zeros(())
    return _mean(part, lengths if section.weights == "token" else None)


def _token_size(part: Tensor, lengths: Tensor) -> float:
    """A token's mean |part|, in place."""
    return float(_mean(part.abs_(), lengths))


def _fault_in_constants(k: float, k_f: float, zeta: float) -> str | None:
    for name, value, lowest in (("k", k, 0.0), ("k_f", k_f, 0.0), ("zeta", zeta, -math.inf)):
        if not (math.isfinite(value) and value >= lowest):
            return f"{name} is {value}; it must be a finite number" + (" of at least 0" if lowest == 0 else "")
    return None


def _fault(advantages: Tensor, entropies: Tensor, trajectory_ids: Tensor) -> str | None:
    """What is wrong with the input, or None."""
    shapes = {
        "advantages": tuple(advantages.shape),
        "entropies": tuple(entropies.shape),
        "trajectory_ids": tuple(trajectory_ids.shape),
    }
    if advantages.ndim != 1 or len(set(shapes.values())) > 1:
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        return f"all three must be one-dimensional over the same turns; got shapes {given}"
    if not advantages.is_floating_point() or not entropies.is_floating_point():
        return f"advantages ({advantages.dtype}) and entropies ({entropies.dtype}) must be floating point"
    if trajectory_ids.is_floating_point():
        return f"trajectory_ids have dtype {trajectory_ids.dtype}; a trajectory is named by an integer"
    in_values = fault_in("advantages", advantages) or fault_in("entropies", entropies, lowest=0)
    return in_values or _fault_in_trajectories(trajectory_ids)


def _fault_in_trajectories(trajectory_ids: Tensor) -> str | None:
    if (trajectory_ids[1:] >= trajectory_ids[:-1]).all():
        return None
    runs = trajectory_ids.unique_consecutive()
    names, counts = runs.unique(return_counts=True)
    if len(names) < len(runs):
        scattered = names[counts > 1][0].item()
        return f"the turns of trajectory {scattered} are not contiguous in trajectory_ids"
    return None


def _fault_in_lengths(lengths: Tensor, advantages: Tensor) -> str | None:
    if lengths.shape != advantages.shape:
        shapes = f"{tuple(lengths.shape)}, advantages {tuple(advantages.shape)}"
        return f"turn_lengths have shape {shapes}; both must be [turns]"
    if len(lengths) and lengths.min() < 1:
        position = int((lengths < 1).nonzero()[0])
        return f"turn_lengths[{position}] is {int(lengths[position])}; a turn has at least one own token"
    return None
