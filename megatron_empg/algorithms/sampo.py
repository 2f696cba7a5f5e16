"""SAMPO (ARLArena, arXiv 2602.21534): sequence clip, step advantages and the dynamic filter, together."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from megatron_empg.algorithms.dapo import rewards_differ
from megatron_empg.algorithms.gigpo import with_step_advantages
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.algorithms.sequence_clip import SequenceClip
from megatron_empg.common.section import Fraction, NonNegativeCoefficient, Positive

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from megatron_empg.algorithms.base import Advantages, Experience, LossTerm, Scores


class Sampo(AlgorithmSection):
    """SAMPO (arXiv 2602.21534): GiGPO's advantage, GSPO's ratio with a wider clip, DAPO's filter.

    The loss is the mean over sequences of their tokens' means. Its released launch files also use a penalty of 0.1
    for malformed turns, which is the environment's, and `kl.coefficient` 0.01.
    """

    tells_turns_apart: ClassVar[bool] = True

    name: Literal["sampo"] = "sampo"
    clip_low: Fraction = 3e-3
    """A sequence's ratio is clipped below 1 minus this. Default of the released launch files."""
    clip_high: NonNegativeCoefficient = 4e-3
    """A sequence's ratio is clipped above 1 plus this. Default of the released launch files."""
    omega: NonNegativeCoefficient = 1.0
    """Weight of the step advantage. 1 is GiGPO's (arXiv 2505.10978)."""
    gamma: Fraction = 0.95
    """Discount of a reward for each turn until it. 0.95 is GiGPO's (arXiv 2505.10978)."""
    normalize_std: bool = True
    """Divide both advantages by their groups' standard deviations. Chosen here, as for GiGPO."""
    max_generation_rounds: Positive = 10
    """Rounds of new questions until enough groups with unequal rewards are found. 10 is DAPO's."""

    @property
    def generation_rounds(self) -> int:
        return self.max_generation_rounds

    def own_mean(self) -> Literal["token", "sequence"]:
        return "sequence"

    def keeps(self, rewards: Float[Tensor, "group_size"]) -> bool:
        return rewards_differ(rewards)

    def advantages(self, experience: Experience, probes: list[Scores]) -> Advantages:
        return with_step_advantages(
            experience, self.name, omega=self.omega, gamma=self.gamma, normalize_std=self.normalize_std
        )

    def surrogate(self) -> LossTerm:
        return SequenceClip(self.clip_low, self.clip_high)
