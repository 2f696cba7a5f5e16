"""The choice `none` of each optional part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from megatron_empg.algorithms.base import Stateless, TokenWeights
from megatron_empg.algorithms.sample import TokenStreams
from megatron_empg.common.lazy_torch import torch
from megatron_empg.common.section import Section

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from megatron_empg.algorithms.base import Experience, LossTerm


class NoModulation(Section):
    """Turn advantages stay what they are."""

    name: Literal["none"] = "none"

    def make(self) -> None:
        return None


class NoRegularizer(Section):
    """The loss has no term over entropies."""

    name: Literal["none"] = "none"

    def make(self) -> NoEntropyTerm:
        return NoEntropyTerm()


class NoEntropyTerm(Stateless):
    def begin(self, experience: Experience, entropies: Float[Tensor, "turns"]) -> dict[str, float]:
        return {}

    def streams(self, part: Experience, kept: Bool[Tensor, "own_tokens"]) -> TokenStreams:
        return TokenStreams()

    def term(self) -> LossTerm | None:
        return None


class NoCorrection(Section):
    """Every token weighs 1, however far engine and actor are apart."""

    name: Literal["none"] = "none"

    def weigh(self, logprobs: Float[Tensor, "own_tokens"], experience: Experience) -> TokenWeights:
        return TokenWeights(torch.ones_like(logprobs))
