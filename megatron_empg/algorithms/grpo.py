"""Group-relative advantages: an episode's reward against those of the same question's other episodes.

Source: GRPO (arXiv 2402.03300), with the unbiased standard deviation of common implementations; without the
division it is Dr. GRPO (arXiv 2503.20783).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from megatron_empg.algorithms.policy_loss import DualClip, TokenClip
from megatron_empg.algorithms.section import AlgorithmSection, on_turns
from megatron_empg.common.lazy_torch import torch
from megatron_empg.common.section import Fraction, NonNegativeCoefficient

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from megatron_empg.algorithms.base import Advantages, Experience, LossTerm, Scores

STD_EPS = 1e-6
"""Added to a standard deviation before dividing by it, as in common implementations."""


class Grpo(AlgorithmSection):
    """GRPO (arXiv 2402.03300): every turn of an episode has the episode's advantage in its question's group."""

    name: Literal["grpo"] = "grpo"
    clip_low: Fraction = 0.2
    """A ratio is clipped below 1 minus this. 0.2 is PPO's (arXiv 1707.06347), which implementations keep."""
    clip_high: NonNegativeCoefficient = 0.2
    """A ratio is clipped above 1 plus this. Default as for `clip_low`."""
    dual_clip: DualClip | None = None
    """Where the advantage is below 0 the loss is at most so many times its size (arXiv 1912.09729); null: no such
    bound, as in the paper. Released code: 3 in verl."""
    normalize_std: bool = True
    """Divide by the group's standard deviation, as GRPO's paper does; false is Dr. GRPO (arXiv 2503.20783)."""

    def advantages(self, experience: Experience, probes: list[Scores]) -> Advantages:
        return group_relative(experience, normalize_std=self.normalize_std)

    def surrogate(self) -> LossTerm:
        return TokenClip(self.clip_low, self.clip_high, self.dual_clip)


def group_relative(experience: Experience, *, normalize_std: bool) -> Advantages:
    """`group_advantages` of a batch, at each of its turns."""
    advantages = group_advantages(experience.rewards.double(), experience.groups, normalize_std=normalize_std)
    return on_turns(advantages, experience)


def group_advantages(
    rewards: Float[Tensor, "episodes"],
    groups: Int[Tensor, "episodes"],
    *,
    normalize_std: bool = True,
    eps: float = STD_EPS,
) -> Float[Tensor, "episodes"]:
    """``(R - mean) / (std + eps)`` inside each group; ``R - mean`` without ``normalize_std``.

    ``groups`` names each episode's question by any integer; the episodes of a group may lie anywhere. A group
    of one has mean 0 and std 1 by definition of the formula's authors: there is nothing to compare with, and the
    rollout drops it. Raises ValueError for other shapes or non-finite rewards.
    """
    check_episodes(rewards, groups)
    values, grouping = rewards.double(), grouped(groups)
    compared = normalized_in_groups(values, grouping, normalize_std=normalize_std, eps=eps)
    if normalize_std:
        alone = values / (1 + eps)
    else:
        alone = values
    return torch.where(grouping.sizes > 1, compared, alone).to(rewards.dtype)


@dataclass(frozen=True)
class Grouping:
    """Which of so many groups each item belongs to."""

    index: Int[Tensor, "items"]
    counts: Int[Tensor, "groups"]

    @property
    def sizes(self) -> Int[Tensor, "items"]:
        """The members of each item's group."""
        return self.counts[self.index]


def grouped(names: Int[Tensor, "items"]) -> Grouping:
    """The groups of items with equal names, which may lie anywhere."""
    _, index, counts = names.unique(return_inverse=True, return_counts=True)
    return Grouping(index, counts)


def normalized_in_groups(
    values: Float[Tensor, "items"], grouping: Grouping, *, normalize_std: bool, eps: float = STD_EPS
) -> Float[Tensor, "items"]:
    """``(value - mean) / (std + eps)`` inside each group in float64, with the unbiased standard deviation.

    ``value - mean`` without ``normalize_std``. Exactly 0 in a group of one, and where all values are equal.
    """
    index, counts = grouping.index, grouping.counts
    zeros = torch.zeros(len(counts), dtype=torch.float64, device=values.device)
    # The mean of equal values may differ from them in its last bit; that of the differences, all 0, does not.
    lowest = zeros.scatter_reduce(0, index, values.double(), "amin", include_self=False)
    above = values.double() - lowest[index]
    mean = zeros.index_add(0, index, above) / counts
    deviations = above - mean[index]
    if not normalize_std:
        return deviations
    squares = zeros.index_add(0, index, deviations.square())
    std = (squares / (counts - 1).clamp(min=1)).sqrt()
    return deviations / (std + eps)[index]


def check_episodes(rewards: Tensor, groups: Tensor) -> None:
    """Raise ValueError unless both are 1-D over the same episodes and every reward is finite."""
    if rewards.ndim != 1 or rewards.shape != groups.shape:
        raise ValueError(
            f"rewards have shape {tuple(rewards.shape)} and groups {tuple(groups.shape)}; both must be [episodes]"
        )
    if groups.is_floating_point():
        raise ValueError(f"groups have dtype {groups.dtype}; a group is named by an integer")
    if not rewards.isfinite().all():
        position = int((~rewards.isfinite()).nonzero()[0])
        raise ValueError(f"rewards[{position}] is {rewards[position].item()}; every reward must be finite")
