"""Matrix products whose result is wider than their operands: half precision in, float32 out.

The logits are not rounded to half precision between the product and the softmax, and the weight's gradient is
summed over chunks in float32.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from megatron_empg.vocab_parallel.statistics import statistics_dtype


def operand(matrix: Tensor) -> Tensor:
    """The matrix as a GEMM operand. CPUs have no mixed-precision GEMM here: half precision is widened."""
    if matrix.is_cuda:
        return matrix
    return matrix.to(statistics_dtype(matrix.dtype))


def multiply(a: Float[Tensor, "m k"], b: Float[Tensor, "k n"], out: Float[Tensor, "m n"]) -> None:
    """out = a·b."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.mm(a, b))


def multiply_add(a: Float[Tensor, "m k"], b: Float[Tensor, "k n"], out: Float[Tensor, "m n"]) -> None:
    """out += a·b."""
    if out.dtype == a.dtype:
        out.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    else:
        out.add_(torch.mm(a, b))
