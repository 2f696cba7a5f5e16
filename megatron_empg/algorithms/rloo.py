"""REINFORCE with a leave-one-out baseline (RLOO, arXiv 2402.14740)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from megatron_empg.algorithms.grpo import check_episodes, grouped, normalized_in_groups
from megatron_empg.algorithms.policy_loss import TokenClip
from megatron_empg.algorithms.section import AlgorithmSection, on_turns
from megatron_empg.common.lazy_torch import torch
from megatron_empg.common.section import Fraction, NonNegativeCoefficient

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from megatron_empg.algorithms.base import Advantages, Experience, LossTerm, Scores


class Rloo(AlgorithmSection):
    """RLOO (arXiv 2402.14740): an episode's reward less the mean of its question's other episodes."""

    name: Literal["rloo"] = "rloo"
    clip_low: Fraction = 0.2
    """A ratio is clipped below 1 minus this. The paper has no clip; with one optimizer step a batch none is at
    work. 0.2 is PPO's (arXiv 1707.06347), which released implementations keep."""
    clip_high: NonNegativeCoefficient = 0.2
    """A ratio is clipped above 1 plus this. Default as for `clip_low`."""

    def advantages(self, experience: Experience, probes: list[Scores]) -> Advantages:
        return on_turns(leave_one_out(experience.rewards.double(), experience.groups), experience)

    def surrogate(self) -> LossTerm:
        return TokenClip(self.clip_low, self.clip_high)


def leave_one_out(
    rewards: Float[Tensor, "episodes"], groups: Int[Tensor, "episodes"]
) -> Float[Tensor, "episodes"]:
    """``n/(n-1)·(R - mean)`` in a group of n, which is R less the mean of the others; in float64.

    A group of one has no others and a baseline of 0, as in released code and in `group_advantages`. Raises
    ValueError for other shapes or non-finite rewards.
    """
    check_episodes(rewards, groups)
    grouping = grouped(groups)
    sizes = grouping.sizes.double()
    factor = sizes / (sizes - 1).clamp(min=1)
    from_others = factor * normalized_in_groups(rewards, grouping, normalize_std=False)
    return torch.where(sizes > 1, from_others, rewards.double())
