"""Shard statistics and logit gradients in Triton: every logit is read once for all four statistics.

Shapes and meaning are those of `torch_kernels`. The kernels also run on CPU tensors under Triton's interpreter
(``TRITON_INTERPRET=1`` before the first import).
"""

import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from megatron_empg.vocab_parallel import torch_kernels
from megatron_empg.vocab_parallel.statistics import STATISTICS, GradientCoefficients, statistics_dtype

LARGEST_BLOCK = 4096
WARPS = 8


def shard_statistics(
    logits: Float[Tensor, "tokens columns"],
    local_targets: Int[Tensor, " tokens"],
    keep: Bool[Tensor, " tokens"],
    width: int,
    temperature: float,
) -> tuple[Float[Tensor, "4 tokens"], bool]:
    """(m, s, c, target logit) of the first `width` columns; a -inf among them is always provided for."""
    if logits.stride(1) != 1:
        return torch_kernels.shard_statistics(logits, local_targets, keep, width, temperature)
    tokens = logits.shape[0]
    stats = logits.new_empty((STATISTICS, tokens), dtype=statistics_dtype(logits.dtype))
    if tokens:
        _statistics_kernel[(tokens,)](
            logits, logits.stride(0), local_targets, keep, stats, tokens, width,
            INVERSE_TEMPERATURE=1 / temperature, BLOCK=_block(width), num_warps=WARPS,
        )  # fmt: skip
    return stats, True


def logits_gradient(
    logits: Float[Tensor, "tokens columns"],
    local_targets: Int[Tensor, " tokens"],
    keep: Bool[Tensor, " tokens"],
    width: int,
    temperature: float,
    coefficients: GradientCoefficients,
    masked: bool,
    out: Float[Tensor, "tokens columns"],
) -> None:
    """Write ∂loss/∂logits into `out`, which may be `logits` itself; exactly 0 in ignored rows and padding."""
    if logits.stride(1) != 1 or out.stride(1) != 1:
        torch_kernels.logits_gradient(logits, local_targets, keep, width, temperature, coefficients, masked, out)
    elif logits.numel():
        tokens, columns = logits.shape
        block = _block(columns)
        _gradient_kernel[(tokens, triton.cdiv(columns, block))](
            logits, logits.stride(0), out, out.stride(0), local_targets, keep, *coefficients, columns, width,
            INVERSE_TEMPERATURE=1 / temperature, BLOCK=block, num_warps=WARPS,
        )  # fmt: skip


def _block(columns: int) -> int:
    return min(LARGEST_BLOCK, triton.next_power_of_2(max(columns, 16)))


# Temperature is a compile-time constant because Triton passes a float argument as float32, too coarse for
# float64; a run uses one or two of them.


@triton.jit
def _statistics_kernel(  # type: ignore[no-untyped-def]
    logits, row_stride, targets, keep, stats, tokens, width,
    INVERSE_TEMPERATURE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: running maximum m, s and c are moved to the new maximum whenever a block raises it."""
    row = tl.program_id(0).to(tl.int64)
    wide = stats.dtype.element_ty
    m = tl.full((), float("-inf"), wide)
    s = tl.full((), 0.0, wide)
    c = tl.full((), 0.0, wide)
    target_logit = tl.full((), 0.0, wide)
    if tl.load(keep + row):
        target = tl.load(targets + row)
        if target >= 0:
            target_logit = tl.load(logits + row * row_stride + target).to(wide)
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            x = tl.load(logits + row * row_stride + columns, mask=columns < width, other=float("-inf")).to(wide)
            raised = tl.maximum(m, tl.max(x, 0))
            # Nothing but -inf so far: any finite centre makes every e^d 0.
            centre = tl.where(raised == float("-inf"), 0.0, raised)
            # s is the sum of e^d so far and c that of d·e^d, d = (x - m) / temperature. About another centre every
            # d is d + shift, so that s becomes e^shift·s, and c becomes e^shift·(c + shift·s).
            shift = tl.where(m == float("-inf"), 0.0, (m - centre) * INVERSE_TEMPERATURE)
            shrink = tl.exp(shift)
            d = (x - centre) * INVERSE_TEMPERATURE
            e = tl.exp(d)
            c = shrink * (c + shift * s) + tl.sum(tl.where(x == float("-inf"), 0.0, d * e), 0)
            s = shrink * s + tl.sum(e, 0)
            m = raised
    tl.store(stats + row, m)
    tl.store(stats + tokens + row, s)
    tl.store(stats + 2 * tokens + row, c)
    tl.store(stats + 3 * tokens + row, target_logit)


@triton.jit
def _gradient_kernel(  # type: ignore[no-untyped-def]
    logits, row_stride, out, out_stride, targets, keep, maximum, offset, slope, at_target, columns_total, width,
    INVERSE_TEMPERATURE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one row: e^d·(offset + slope·d), plus the target's share, 0 in padding and ignored rows."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = (columns < width) & tl.load(keep + row)
    x = tl.load(logits + row * row_stride + columns, mask=real, other=float("-inf"))
    x = x.to(maximum.dtype.element_ty)
    d = (x - tl.load(maximum + row)) * INVERSE_TEMPERATURE
    gradient = tl.exp(d) * (tl.load(offset + row) + tl.load(slope + row) * d)
    gradient = tl.where(x == float("-inf"), 0.0, gradient)  # where e^d·d is 0 times -inf, which is nan
    gradient += tl.where(real & (columns == tl.load(targets + row)), tl.load(at_target + row), 0.0)
    tl.store(
        out + row * out_stride + columns,
        gradient.to(out.dtype.element_ty),
        mask=columns < columns_total,
    )
