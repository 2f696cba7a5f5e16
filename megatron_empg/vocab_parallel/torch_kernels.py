"""Shard statistics and logit gradients in plain PyTorch, in chunks of tokens that stay in the CPU's cache.

Every pass but the first then reads cache instead of memory, and no buffer grows with the number of tokens.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from megatron_empg.vocab_parallel.statistics import STATISTICS, GradientCoefficients, statistics_dtype

# 1 MiB of float32 a thread: two such buffers and the chunk itself fit the last-level cache.
CHUNK_ELEMENTS_PER_THREAD = 1 << 18
# Elsewhere a chunk only bounds the buffers: 256 MiB of float32.
CHUNK_ELEMENTS_OFF_CPU = 1 << 26
# e^d is exactly 0 below this, in float32 and float64 alike, and 0·d then stays 0 where d was -inf.
SMALLEST_EXPONENT = -800.0


class LogitsChunk(NamedTuple):
    """Rows of the logits, and two buffers of [rows, width] for d = (x − m)/τ and e^d."""

    rows: slice
    d: Tensor
    e: Tensor
    all_kept: bool
    none_kept: bool


def shard_statistics(
    logits: Float[Tensor, "tokens columns"],
    local_targets: Int[Tensor, " tokens"],
    keep: Bool[Tensor, " tokens"],
    width: int,
    temperature: float,
) -> tuple[Float[Tensor, "4 tokens"], bool]:
    """(m, s, c, target logit) of the first `width` columns, and whether a -inf may be among them.

    What a row that is not kept contributes is unspecified.
    """
    dtype = statistics_dtype(logits.dtype)
    stats = logits.new_zeros((STATISTICS, logits.shape[0]), dtype=dtype)
    stats[0] = -torch.inf
    if width == 0:
        return stats, False
    picked = logits.gather(1, local_targets.clamp(min=0).long().unsqueeze(1)).squeeze(1).to(dtype)
    stats[3] = torch.where(local_targets >= 0, picked, 0)
    # Where the host would have to wait for the answer, assume there is a -inf.
    masked = logits.device.type != "cpu"
    for chunk in _chunks(logits, keep, width, dtype):
        if chunk.none_kept:
            continue
        x = logits[chunk.rows, :width]
        m, s, c = stats[0, chunk.rows], stats[1, chunk.rows], stats[2, chunk.rows]
        m.copy_(x.amax(-1))
        _centred_sums(x, m, s, c, chunk, temperature, masked)
        if not masked and bool(c.isnan().any()):
            masked = True
            _centred_sums(x, m, s, c, chunk, temperature, masked)
    return stats, masked


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
    maximum, offset, slope, at_target = (per_token.unsqueeze(1) for per_token in coefficients)
    columns = local_targets.clamp(min=0).long().unsqueeze(1)
    at_target = at_target.masked_fill((local_targets < 0).unsqueeze(1), 0)
    out[:, width:] = 0
    for chunk in _chunks(logits, keep, width, maximum.dtype) if width else ():
        rows, d, e = chunk.rows, chunk.d, chunk.e
        if chunk.none_kept:
            out[rows] = 0
            continue
        _centre(logits[rows, :width], maximum[rows], temperature, d)
        torch.exp(d, out=e)
        if masked:
            d.clamp_(min=SMALLEST_EXPONENT)
        torch.addcmul(offset[rows], d, slope[rows], out=d)
        gradient = torch.mul(d, e, out=out[rows, :width] if out.dtype == d.dtype else d)
        gradient.scatter_add_(1, columns[rows], at_target[rows])
        if out.dtype != d.dtype:  # rounded once, after the target's share is in
            out[rows, :width] = gradient
        if not chunk.all_kept:
            out[rows, :width].masked_fill_(~keep[rows].unsqueeze(1), 0)


def _centred_sums(
    x: Tensor, m: Tensor, s: Tensor, c: Tensor, chunk: LogitsChunk, temperature: float, masked: bool
) -> None:
    """s = Σ e^d and c = Σ d·e^d; `masked` takes a -inf for the 0 it stands for, at one more pass."""
    if masked:
        centre = m.masked_fill(m == -torch.inf, 0)
    else:
        centre = m
    _centre(x, centre.unsqueeze(1), temperature, chunk.d)
    torch.exp(chunk.d, out=chunk.e)
    torch.sum(chunk.e, -1, out=s)
    if masked:
        chunk.d.clamp_(min=SMALLEST_EXPONENT)
    # Not a dot product: on CPU those accumulate in order and lose three digits over 150,000 terms.
    torch.sum(chunk.d.mul_(chunk.e), -1, out=c)


def _centre(x: Tensor, centre: Tensor, temperature: float, out: Tensor) -> None:
    """(x − centre)/τ; the difference first, so that large logits lose nothing to the division."""
    if x.dtype == out.dtype:
        torch.sub(x, centre, out=out)
    else:
        out.copy_(x).sub_(centre)
    if temperature != 1:
        out.div_(temperature)


def _chunks(logits: Tensor, keep: Tensor, width: int, dtype: torch.dtype) -> Iterator[LogitsChunk]:
    tokens = logits.shape[0]
    on_cpu = logits.device.type == "cpu"
    if on_cpu:
        elements = CHUNK_ELEMENTS_PER_THREAD * torch.get_num_threads()
    else:
        elements = CHUNK_ELEMENTS_OFF_CPU
    size = max(1, min(tokens, elements // width))
    d, e = (logits.new_empty((size, width), dtype=dtype) for _ in range(2))
    every = on_cpu and bool(keep.all())
    for start in range(0, tokens, size):
        rows = slice(start, min(start + size, tokens))
        n = rows.stop - rows.start
        none = on_cpu and not every and not bool(keep[rows].any())
        yield LogitsChunk(rows, d[:n], e[:n], every, none)
