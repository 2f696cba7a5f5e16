"""The LM head's weight gradient, summed over chunks of tokens where it will stay."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from megatron_empg.upstream.megatron_model import stand_in_gradient
from megatron_empg.vocab_parallel.gemm import multiply, multiply_add
from megatron_empg.vocab_parallel.statistics import statistics_dtype


class WeightGradient:
    """Sums Σ gradientᵀ · hidden in float32, or float64: in Megatron's main_grad itself where it has that type.

    With `fusion` the contract is that of Megatron's ``gradient_accumulation_fusion``
    (megatron.core.tensor_parallel.layers): main_grad holds the sum, ``grad_added_to_main_grad`` says so to
    DistributedDataParallel's hook, and autograd gets a stand-in so that the hook fires.
    """

    def __init__(self, weight: Any, fusion: bool) -> None:
        self.weight = weight  # a Tensor; Any for the attributes that Megatron adds
        self.fusion = fusion
        self.wide = statistics_dtype(weight.dtype)
        self.in_place = fusion and self.weight.main_grad.dtype == self.wide
        self.sum: Tensor | None = self.weight.main_grad if self.in_place else None

    def add(self, gradient: Float[Tensor, "tokens columns"], hidden: Float[Tensor, "tokens hidden"]) -> None:
        """Add one chunk's share."""
        if self.sum is None:
            self.sum = torch.empty(self.weight.shape, dtype=self.wide, device=self.weight.device)
            multiply(gradient.t(), hidden, self.sum)
        else:
            multiply_add(gradient.t(), hidden, self.sum)

    def finish(self) -> Tensor | None:
        """The gradient that autograd is given for the weight."""
        weight, total = self.weight, self.sum
        if not self.fusion:
            if total is None:
                return torch.zeros_like(weight)
            return total.to(weight.dtype)
        if not self.in_place and total is not None:
            weight.main_grad.add_(total)
        return stand_in_gradient(weight)
