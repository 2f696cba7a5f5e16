"""GSPO (arXiv 2507.18071): GRPO's advantage, with one clipped ratio for a whole sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from megatron_empg.algorithms.grpo import group_relative
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.algorithms.sequence_clip import SequenceClip
from megatron_empg.common.section import Fraction, NonNegativeCoefficient

if TYPE_CHECKING:
    from megatron_empg.algorithms.base import Advantages, Experience, LossTerm, Scores


class Gspo(AlgorithmSection):
    """GSPO (arXiv 2507.18071): a sample is clipped as a whole, by the geometric mean of its tokens' ratios."""

    name: Literal["gspo"] = "gspo"
    clip_low: Fraction = 3e-4
    """A sequence's ratio is clipped below 1 minus this. Default of the paper."""
    clip_high: NonNegativeCoefficient = 4e-4
    """A sequence's ratio is clipped above 1 plus this. Default of the paper."""
    normalize_std: bool = True
    """Divide by the group's standard deviation, as the paper does."""

    def own_mean(self) -> Literal["token", "sequence"]:
        return "sequence"

    def advantages(self, experience: Experience, probes: list[Scores]) -> Advantages:
        return group_relative(experience, normalize_std=self.normalize_std)

    def surrogate(self) -> LossTerm:
        return SequenceClip(self.clip_low, self.clip_high)
