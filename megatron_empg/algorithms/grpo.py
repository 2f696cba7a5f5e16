"""Group-relative advantages: an episode's reward against those of the same question's other episodes.

Source: GRPO (arXiv 2402.03300), with the unbiased standard deviation of common implementations; without the
division it is Dr. GRPO (arXiv 2503.20783).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def group_advantages(
    rewards: Float[Tensor, "episodes"],
    groups: Int[Tensor, "episodes"],
    *,
    normalize_std: bool = True,
    eps: float = 1e-6,
) -> Float[Tensor, "episodes"]:
    """``(R - mean) / (std + eps)`` inside each group; ``R - mean`` without ``normalize_std``.

    ``groups`` names each episode's question by any integer; the episodes of a group may lie anywhere. A group
    of one has mean 0 and std 1 by definition of the formula's authors: there is nothing to compare with, so
    drop it beforehand (`in_groups_of_at_least`). Raises ValueError for other shapes or non-finite rewards.
    """
    check_episodes(rewards, groups)
    _, index, counts = groups.unique(return_inverse=True, return_counts=True)
    values = rewards.double()
    alone = counts == 1
    mean = torch.zeros(len(counts), dtype=torch.float64, device=rewards.device)
    mean = mean.index_add(0, index, values) / counts
    mean = mean.masked_fill(alone, 0.0)
    deviations = values - mean[index]
    if normalize_std:
        squares = torch.zeros_like(mean).index_add(0, index, deviations.square())
        std = (squares / (counts - 1).clamp(min=1)).sqrt().masked_fill(alone, 1.0)
        deviations = deviations / (std + eps)[index]
    return deviations.to(rewards.dtype)


def in_groups_of_at_least(groups: Int[Tensor, "episodes"], size: int = 2) -> Bool[Tensor, "episodes"]:
    """True for the episodes of groups that still have ``size`` members, e.g. after errors were dropped."""
    _, index, counts = groups.unique(return_inverse=True, return_counts=True)
    return (counts >= size)[index]


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
