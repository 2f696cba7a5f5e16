"""IcePop: a correction that keeps tokens on which engine and actor nearly agree."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from megatron_empg.algorithms.base import Experience, Weighted
from megatron_empg.section import Section


class IcePop(Section):
    name: Literal["icepop"] = "icepop"

    def weigh(self, logprobs: Float[Tensor, "own_tokens"], experience: Experience) -> Weighted:
        raise NotImplementedError
