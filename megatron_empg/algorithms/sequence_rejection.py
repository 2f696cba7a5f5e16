"""A correction that rejects whole samples on which engine and actor disagree."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from megatron_empg.algorithms.base import Experience, Weighted
from megatron_empg.section import Section


class SequenceRejection(Section):
    name: Literal["sequence_rejection"] = "sequence_rejection"

    def weigh(self, logprobs: Float[Tensor, "own_tokens"], experience: Experience) -> Weighted:
        raise NotImplementedError
