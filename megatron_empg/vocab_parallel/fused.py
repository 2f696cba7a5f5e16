"""Log-prob and entropy from hidden states: the LM head in chunks of tokens, its logits never kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_empg.common.ranks import ranks_of, sum_over_ranks_
from megatron_empg.vocab_parallel.chunk import default_chunk
from megatron_empg.vocab_parallel.collectives import (
    gather_rows,
    reduce_scatter_rows,
)
from megatron_empg.vocab_parallel.debug import debug_enabled, require_same_on_all_ranks
from megatron_empg.vocab_parallel.gemm import multiply, operand
from megatron_empg.vocab_parallel.kernels import kernels_for
from megatron_empg.vocab_parallel.shard import VocabShard, check_matrix, check_temperature, kept_targets
from megatron_empg.vocab_parallel.sharded import check_upstream
from megatron_empg.vocab_parallel.statistics import (
    STATISTICS,
    GradientCoefficients,
    VocabularyStatistics,
    combine,
    gather_statistics,
    gradient_coefficients,
    statistics_dtype,
)
from megatron_empg.vocab_parallel.weight_gradient import WeightGradient


def linear_logprob_and_entropy(
    hidden: Float[Tensor, "rows hidden"],
    weight: Float[Tensor, "columns hidden"],
    targets: Int[Tensor, " tokens"],
    group: dist.ProcessGroup | None = None,
    *,
    chunk_tokens: int | None = None,
    sequence_parallel: bool = False,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    gradient_accumulation_fusion: bool = False,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """`logprob_and_entropy` of the logits hidden · weightᵀ, of which no more than a chunk exists at a time.

    `weight` is this rank's rows [vocabulary/TP, hidden] of the LM head. `hidden` is [tokens, hidden], the same on
    all ranks; under `sequence_parallel` it is this rank's [tokens/TP, hidden], in rank order. `targets` are all
    tokens' in either case. Ignored tokens cost no arithmetic. Logits are float32 also from half precision.

    Collectives are those of Megatron's ColumnParallelLinear, once and not per chunk: without sequence
    parallelism one all-reduce of the hidden gradient; with it an all-gather of hidden in forward and in
    backward and one reduce-scatter of its gradient; and the gather of 16 bytes per kept token in forward.

    `gradient_accumulation_fusion` adds the weight's gradient to ``weight.main_grad`` and sets
    ``weight.grad_added_to_main_grad``, as Megatron's layer of that name does for its DistributedDataParallel.
    `chunk_tokens` None takes `default_chunk`. Other arguments, outputs and errors as in
    `logprob_and_entropy`.
    """
    settings = _Settings.of(
        hidden,
        weight,
        group,
        chunk_tokens,
        sequence_parallel,
        vocab_size,
        temperature,
        gradient_accumulation_fusion,
    )
    tokens = hidden.shape[0] * (ranks_of(group) if sequence_parallel else 1)
    keep = kept_targets(targets, tokens, hidden.device, settings.shard, ignore_index)
    if debug_enabled() and not sequence_parallel:
        require_same_on_all_ranks("hidden", hidden, group)
    outputs: tuple[Tensor, Tensor] = _LinearLogProbAndEntropy.apply(
        hidden, weight, settings.shard.local(targets), keep, settings
    )
    return outputs


@dataclass(frozen=True)
class _Settings:
    shard: VocabShard
    chunk_tokens: int
    sequence_parallel: bool
    temperature: float
    gradient_accumulation_fusion: bool

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        weight: Tensor,
        group: dist.ProcessGroup | None,
        chunk_tokens: int | None,
        sequence_parallel: bool,
        vocab_size: int | None,
        temperature: float,
        gradient_accumulation_fusion: bool,
    ) -> "_Settings":
        check_matrix("hidden", hidden, "[tokens, hidden]")
        check_matrix("weight", weight, "[vocabulary/TP, hidden]")
        check_temperature(temperature)
        if hidden.shape[1] != weight.shape[1]:
            raise ValueError(
                f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must agree in dimension 1"
            )
        if (hidden.dtype, hidden.device) != (weight.dtype, weight.device):
            raise ValueError(
                f"hidden is {hidden.dtype} on {hidden.device}, weight {weight.dtype} on {weight.device}; "
                "both must have one type and device"
            )
        if gradient_accumulation_fusion and weight.requires_grad and getattr(weight, "main_grad", None) is None:
            raise ValueError(
                "gradient_accumulation_fusion needs weight.main_grad, which Megatron's DistributedDataParallel "
                "creates; wrap the model first or leave the fusion off"
            )
        tokens = hidden.shape[0] * (ranks_of(group) if sequence_parallel else 1)
        if chunk_tokens is None:
            chunk_tokens = default_chunk(tokens, weight.shape[0], hidden.device.type)
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
        shard = VocabShard.of(weight.shape[0], vocab_size, group)
        return cls(shard, chunk_tokens, sequence_parallel, temperature, gradient_accumulation_fusion)


class _LinearLogProbAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, local_targets: Tensor, keep: Tensor, settings: _Settings
    ) -> tuple[Tensor, Tensor]:
        kept = _kept_rows(keep)
        if settings.sequence_parallel:
            total = gather_rows(hidden, settings.shard.group)
        else:
            total = hidden
        mine, masked = _statistics(total, weight, local_targets, kept, settings)
        combined = combine(gather_statistics(mine, settings.shard.group), settings.temperature)
        ctx.save_for_backward(hidden, weight, local_targets, keep, kept, *combined[1:])
        ctx.settings, ctx.masked = settings, masked
        ctx.set_materialize_grads(False)
        return _spread(combined.log_prob, kept, keep), _spread(combined.entropy, kept, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_prob: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_log_prob is None and grad_entropy is None:
            return (None,) * 5
        settings: _Settings = ctx.settings
        hidden, weight, local_targets, keep, kept, entropy, maximum, log_sum = ctx.saved_tensors
        check_upstream(grad_log_prob, grad_entropy, settings.shard)
        if kept is not None:
            if grad_log_prob is not None:
                grad_log_prob = grad_log_prob[kept]
            if grad_entropy is not None:
                grad_entropy = grad_entropy[kept]
        # The gradient does not need the log-prob; any tensor of its shape stands in for it.
        combined = VocabularyStatistics(log_prob=log_sum, entropy=entropy, maximum=maximum, log_sum=log_sum)
        coefficients = gradient_coefficients(
            grad_log_prob,
            grad_entropy,
            combined,
            keep.new_ones(len(log_sum)),
            settings.temperature,
        )
        if settings.sequence_parallel:
            total = gather_rows(hidden, settings.shard.group)
        else:
            total = hidden
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = None
        if needs_hidden:
            if kept is None:
                grad_hidden = torch.empty_like(total)
            else:
                grad_hidden = torch.zeros_like(total)
        grad_weight = None
        if needs_weight:
            grad_weight = WeightGradient(weight, settings.gradient_accumulation_fusion)
        _gradients(
            total, weight, local_targets, kept, settings, coefficients, ctx.masked, grad_hidden, grad_weight
        )
        if grad_hidden is not None and settings.sequence_parallel:
            grad_hidden = reduce_scatter_rows(grad_hidden, settings.shard.group)
        elif grad_hidden is not None:
            sum_over_ranks_(grad_hidden, settings.shard.group)
        return grad_hidden, grad_weight.finish() if grad_weight is not None else None, None, None, None


def _statistics(
    hidden: Tensor, weight: Tensor, local_targets: Tensor, kept: Tensor | None, settings: _Settings
) -> tuple[Float[Tensor, "4 kept"], bool]:
    """This shard's statistics of the kept tokens, and whether a logit may be -inf."""
    kernels = kernels_for(hidden.device)
    if kept is None:
        tokens = hidden.shape[0]
    else:
        tokens = len(kept)
    stats = hidden.new_empty((STATISTICS, tokens), dtype=statistics_dtype(hidden.dtype))
    masked = False
    for chunk in _chunks(hidden, weight, local_targets, kept, settings):
        part, masked_here = kernels.shard_statistics(
            chunk.logits, chunk.targets, chunk.all_kept, settings.shard.width, settings.temperature
        )
        stats[:, chunk.rows] = part
        masked |= masked_here
    return stats, masked


def _gradients(
    hidden: Tensor,
    weight: Tensor,
    local_targets: Tensor,
    kept: Tensor | None,
    settings: _Settings,
    coefficients: GradientCoefficients,
    masked: bool,
    grad_hidden: Tensor | None,
    grad_weight: WeightGradient | None,
) -> None:
    """Recompute each chunk's logits, turn them into their gradient in place, and multiply on from there."""
    kernels = kernels_for(hidden.device)
    wide_weight = operand(weight)
    for chunk in _chunks(hidden, weight, local_targets, kept, settings):
        rows = chunk.rows
        here = GradientCoefficients(*(per_token[rows] for per_token in coefficients))
        # Half-precision products want half-precision operands; else the gradient takes the logits' place.
        same = chunk.logits.dtype == wide_weight.dtype
        if same:
            gradient = chunk.logits
        else:
            gradient = torch.empty_like(chunk.logits, dtype=wide_weight.dtype)
        kernels.logits_gradient(
            chunk.logits,
            chunk.targets,
            chunk.all_kept,
            settings.shard.width,
            settings.temperature,
            here,
            masked,
            gradient,
        )
        if grad_hidden is not None and kept is None:
            multiply(gradient, wide_weight, grad_hidden[rows])
        elif grad_hidden is not None and kept is not None:
            grad_hidden[kept[rows]] = torch.mm(gradient, wide_weight).to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight.add(gradient, chunk.hidden)


@dataclass(frozen=True)
class _Chunk:
    rows: slice
    hidden: Tensor
    logits: Tensor
    targets: Tensor
    all_kept: Bool[Tensor, " rows"]


def _chunks(
    hidden: Tensor, weight: Tensor, local_targets: Tensor, kept: Tensor | None, settings: _Settings
) -> Iterator[_Chunk]:
    """Chunks of the kept tokens with their logits, which all lie in one buffer."""
    if kept is None:
        tokens = hidden.shape[0]
    else:
        tokens = len(kept)
    size = min(settings.chunk_tokens, tokens)
    buffer = hidden.new_empty((size, weight.shape[0]), dtype=statistics_dtype(hidden.dtype))
    all_kept = torch.ones(size, dtype=torch.bool, device=hidden.device)
    transposed = operand(weight).t()
    for start in range(0, tokens, max(size, 1)):
        rows = slice(start, min(start + size, tokens))
        which: slice | Tensor = rows
        if kept is not None:
            which = kept[rows]
        n = rows.stop - rows.start
        here = operand(hidden[which])
        multiply(here, transposed, buffer[:n])
        yield _Chunk(rows, here, buffer[:n], local_targets[which], all_kept[:n])


def _kept_rows(keep: Bool[Tensor, " tokens"]) -> Int[Tensor, " kept"] | None:
    """Indices of the tokens that count; None where all do. On CUDA this waits for the targets."""
    kept = keep.nonzero().squeeze(1)
    if len(kept) == len(keep):
        return None
    return kept


def _spread(values: Tensor, kept: Tensor | None, keep: Tensor) -> Tensor:
    """Values of the kept tokens at their places, 0 elsewhere."""
    if kept is None:
        return values
    return values.new_zeros(len(keep)).index_copy_(0, kept, values)
