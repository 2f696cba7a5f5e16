"""EPO (arXiv 2509.22576): an entropy bonus, smoothed by a band around the entropy's own history.

Added to the policy loss: ``-strength·(mean H - beta·mean P)``, with the mean over the turns of a trajectory, then
over the batch. The gradient flows through the entropies, so they must be differentiable.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from megatron_empg.algorithms.base import Regularizer
from megatron_empg.section import Section


class Epo(Section):
    """Entropy-regularised policy optimization."""

    name: Literal["epo"] = "epo"

    def make(self) -> Regularizer:
        raise NotImplementedError


@dataclass
class EntropyHistory:
    """The cumulative mean of past batches' entropies; its two numbers belong in a checkpoint."""

    total: float = 0.0
    batches: int = 0

    @property
    def mean(self) -> float | None:
        """None before the first batch."""
        return self.total / self.batches if self.batches else None

    def add(self, entropy: float) -> None:
        """Take up one batch's mean entropy. Raises ValueError unless it is finite."""
        if not math.isfinite(entropy):
            raise ValueError(f"a batch's mean entropy is {entropy}; it must be finite")
        self.total += entropy
        self.batches += 1


def smoothing_penalty(
    entropies: Float[Tensor, "turns"],
    history_mean: float | None,
    *,
    low: float = 0.8,
    high: float = 1.2,
    alpha: float = 0.1,
    form: Literal["distance", "constant"] = "distance",
) -> Float[Tensor, "turns"]:
    """P of each turn: 0 inside ``[low·history, high·history]`` and without a history.

    Outside, ``constant`` is alpha, as published: it has no gradient, so its smoothing does nothing.
    ``distance``, this project's deviation, is alpha times the distance to the band, and pulls back into it.
    Raises ValueError unless 0 <= low <= high, or for another form.
    """
    if not 0 <= low <= high:
        raise ValueError(f"the band is [{low}, {high}] times the history; it needs 0 <= low <= high")
    if form not in ("distance", "constant"):
        raise ValueError(f"form is {form!r}; it must be 'distance' or 'constant'")
    if history_mean is None:
        return torch.zeros_like(entropies)
    below = (low * history_mean - entropies).clamp(min=0)
    above = (entropies - high * history_mean).clamp(min=0)
    outside = below + above
    return alpha * (outside if form == "distance" else (outside > 0).to(entropies.dtype))


def entropy_regularizer(
    entropies: Float[Tensor, "turns"],
    penalties: Float[Tensor, "turns"],
    trajectory_ids: Int[Tensor, "turns"],
    *,
    strength: float = 0.001,
    beta: float = 1.0,
) -> Float[Tensor, ""]:
    """The term to add to the policy loss; ``beta`` may carry `phase_weight`. 0 without turns.

    Raises ValueError unless all three are 1-D over the same turns.
    """
    if entropies.ndim != 1 or not entropies.shape == penalties.shape == trajectory_ids.shape:
        raise ValueError(
            f"entropies {tuple(entropies.shape)}, penalties {tuple(penalties.shape)} and trajectory_ids "
            f"{tuple(trajectory_ids.shape)} must all be [turns]"
        )
    if not len(entropies):
        return entropies.sum()
    _, index, counts = trajectory_ids.unique(return_inverse=True, return_counts=True)
    # A mean of trajectory means: every turn weighs 1 / (its trajectory's turns x trajectories).
    weights = 1.0 / (counts[index] * len(counts)).to(entropies.dtype)
    return -strength * (weights * (entropies - beta * penalties)).sum()


def phase_weight(progress: float) -> float:
    """The published schedule over training progress in [0, 1]; p is the progress within a half.

    First half ``1 - 0.2(1 - e^(-2p))``, second half ``0.8·e^(-3p)``. Raises ValueError outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}; it must lie in [0, 1]")
    if progress < 0.5:
        return 1 - 0.2 * (1 - math.exp(-2 * (2 * progress)))
    return 0.8 * math.exp(-3 * (2 * progress - 1))
