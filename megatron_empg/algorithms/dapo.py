"""DAPO's filter and length shaping (arXiv 2503.14476); its asymmetric clip is an argument of the policy loss."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from megatron_empg.algorithms.grpo import check_episodes


def informative_groups(
    rewards: Float[Tensor, "episodes"], groups: Int[Tensor, "episodes"]
) -> Bool[Tensor, "episodes"]:
    """True for the episodes of groups whose rewards differ.

    Where all rewards are equal every advantage is 0 and the group teaches nothing: dynamic sampling drops it
    and asks another question. Raises ValueError for other shapes or non-finite rewards.
    """
    check_episodes(rewards, groups)
    _, index, counts = groups.unique(return_inverse=True, return_counts=True)
    low = rewards.new_full((len(counts),), torch.inf).scatter_reduce(0, index, rewards, "amin")
    high = rewards.new_full((len(counts),), -torch.inf).scatter_reduce(0, index, rewards, "amax")
    return (low < high)[index]


def overlong_penalty(
    lengths: Int[Tensor, "episodes"], *, max_length: int, buffer: int, penalty: float = 1.0
) -> Float[Tensor, "episodes"]:
    """Added to the reward: 0 up to ``max_length - buffer`` tokens, then linear down to ``-penalty`` at
    ``max_length`` and beyond. Raises ValueError unless 0 < buffer <= max_length.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer is {buffer} tokens; it must be above 0 and at most max_length ({max_length})")
    excess = (lengths - (max_length - buffer)).float() / buffer
    return -penalty * excess.clamp(0.0, 1.0)
