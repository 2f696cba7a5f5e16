"""The plain entropy bonus: the loss falls as the policy's entropy grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from megatron_empg.algorithms.base import Stateless
from megatron_empg.algorithms.sample import TokenStreams
from megatron_empg.common.section import Coefficient, Section

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from megatron_empg.algorithms.base import Experience, LossTerm
    from megatron_empg.algorithms.segments import Segments


class EntropyBonus(Section):
    """Every token's entropy is paid for alike."""

    name: Literal["entropy"] = "entropy"
    coefficient: Coefficient = 0.001
    """The loss gets minus so many times the mean entropy in nats, a mean as `algorithm.loss_mean` says; below 0
    entropy costs. (The default is that of EPO's released code.)"""

    def make(self) -> Bonus:
        return Bonus(self.coefficient)


class Bonus(Stateless):
    """Reads nothing of the batch."""

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient

    def begin(self, experience: Experience, entropies: Float[Tensor, "turns"]) -> dict[str, float]:
        return {}

    def streams(self, part: Experience, kept: Bool[Tensor, "own_tokens"]) -> TokenStreams:
        return TokenStreams()

    def term(self) -> LossTerm | None:
        if not self.coefficient:
            return None
        return BonusTerm(self.coefficient)


class BonusTerm:
    """``-coefficient`` times each token's entropy."""

    weighted: bool = False

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient
        self.statistics: tuple[str, ...] = ()

    def __call__(
        self, logprobs: Tensor, entropies: Tensor, streams: TokenStreams, segments: Segments
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return -self.coefficient * entropies, {}
