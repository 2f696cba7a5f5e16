"""REINFORCE++ (arXiv 2501.03262): discounted returns, whitened over the whole batch; no groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from megatron_empg.algorithms.base import Advantages
from megatron_empg.algorithms.policy_loss import TokenClip
from megatron_empg.algorithms.returns import discounted_returns, turn_rewards_in_force
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.common.lazy_torch import torch
from megatron_empg.common.section import Fraction, NonNegativeCoefficient

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from megatron_empg.algorithms.base import Experience, LossTerm, Scores

VARIANCE_EPS = 1e-8
"""Added to the variance before its root divides; released code."""


class ReinforcePP(AlgorithmSection):
    """REINFORCE++ (arXiv 2501.03262): what came of a turn, against what came of all turns of the batch."""

    name: Literal["reinforce_pp"] = "reinforce_pp"
    clip_low: Fraction = 0.2
    """A ratio is clipped below 1 minus this. 0.2 is PPO's (arXiv 1707.06347), which the paper keeps."""
    clip_high: NonNegativeCoefficient = 0.2
    """A ratio is clipped above 1 plus this. Default as for `clip_low`."""
    gamma: Fraction = 1.0
    """Discount of a reward for each turn until it. 1.0 is that of released code, whose steps are tokens; here they
    are turns (chosen here), since all tokens of a turn share its advantage."""
    weights: Literal["token", "turn"] = "token"
    """What the batch's mean and variance count: own tokens, as released code does, so that the advantages add up
    to 0 in a loss that is a mean over tokens; or turns."""

    def advantages(self, experience: Experience, probes: list[Scores]) -> Advantages:
        rewards = turn_rewards_in_force(experience)
        returns = discounted_returns(rewards, experience.episode_of_turn, self.gamma)
        if self.weights == "token":
            counted = experience.turn_lengths
        else:
            counted = torch.ones_like(experience.turn_lengths)
        mean, std = mean_and_std(returns, counted)
        # An episode's advantage, for readers: its undiscounted reward on the same scale.
        return Advantages((experience.rewards.double() - mean) / std, (returns - mean) / std)

    def surrogate(self) -> LossTerm:
        return TokenClip(self.clip_low, self.clip_high)


def mean_and_std(values: Float[Tensor, "items"], weights: Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The weighted mean, and ``sqrt(variance + 1e-8)``, in float64; 0 and the epsilon's root of nothing.

    The variance is the unbiased one of ``weights`` equal observations each. Equal values have exactly their own
    value as the mean.
    """
    if not len(values):
        return torch.zeros((), dtype=torch.float64), torch.tensor(VARIANCE_EPS, dtype=torch.float64).sqrt()
    weights = weights.double()
    total = weights.sum()
    lowest = values.min()
    mean = lowest + (weights * (values - lowest)).sum() / total
    squares = (weights * (values - mean).square()).sum()
    variance = squares / (total - 1).clamp(min=1)
    return mean, (variance + VARIANCE_EPS).sqrt()
