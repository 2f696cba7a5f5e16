"""Corrections that weigh a token by the ratio of actor to engine: truncated at a cap, or masked outside bounds."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from megatron_empg.algorithms.base import Experience, Weighted
from megatron_empg.section import Section


class Tis(Section):
    """Truncated importance sampling (Yao et al., 2025)."""

    name: Literal["tis"] = "tis"

    def weigh(self, logprobs: Float[Tensor, "own_tokens"], experience: Experience) -> Weighted:
        raise NotImplementedError


class Mis(Section):
    """Masked importance sampling."""

    name: Literal["mis"] = "mis"

    def weigh(self, logprobs: Float[Tensor, "own_tokens"], experience: Experience) -> Weighted:
        raise NotImplementedError
