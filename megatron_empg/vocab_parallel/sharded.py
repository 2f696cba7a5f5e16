"""Log-prob and entropy from logits whose vocabulary is sharded over tensor-parallel ranks."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_empg.vocab_parallel.debug import debug_enabled, require_same_on_all_ranks
from megatron_empg.vocab_parallel.kernels import kernels_for
from megatron_empg.vocab_parallel.shard import VocabShard, check_matrix, check_temperature, kept_targets
from megatron_empg.vocab_parallel.statistics import (
    VocabularyStatistics,
    combine,
    gather_statistics,
    gradient_coefficients,
)


def logprob_and_entropy(
    logits: Float[Tensor, "tokens columns"],
    targets: Int[Tensor, " tokens"],
    group: dist.ProcessGroup | None = None,
    *,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    overwrite_logits: bool = False,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Log-prob of each target and entropy (nats) of each distribution softmax(logits/τ), both differentiable.

    `logits` is this rank's shard [tokens, vocabulary/TP], rank r of `group` holding the r-th; `group` None
    means the vocabulary is not sharded. `targets` are global token ids, the same on all ranks. `vocab_size` is
    the unpadded size: columns beyond it are no part of the distribution. float64 in gives float64, everything
    else float32. At an ignored target both outputs and all gradients are exactly 0. A logit of -inf counts 0.

    One collective in forward (16 bytes per token and rank), none in backward: that takes the upstream gradient to
    be the same on all ranks, as it is when each computes the loss alike (checked under `debug_checks`).
    Nothing of vocabulary size is kept but `logits`; `overwrite_logits` lets their gradient take their memory in
    backward, for a caller that needs them no more.

    Raises ValueError for wrong shapes, types or settings, and for a target outside the vocabulary (on CUDA an
    asynchronous device assert).
    """
    check_matrix("logits", logits, "[tokens, vocabulary/TP]")
    check_temperature(temperature)
    shard = VocabShard.of(logits.shape[1], vocab_size, group)
    keep = kept_targets(targets, logits.shape[0], logits.device, shard, ignore_index)
    outputs: tuple[Tensor, Tensor] = _LogProbAndEntropy.apply(
        logits, shard.local(targets), keep, shard, temperature, overwrite_logits
    )
    return outputs


class _LogProbAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        local_targets: Tensor,
        keep: Tensor,
        shard: VocabShard,
        temperature: float,
        overwrite_logits: bool,
    ) -> tuple[Tensor, Tensor]:
        kernels = kernels_for(logits.device)
        mine, masked = kernels.shard_statistics(logits, local_targets, keep, shard.width, temperature)
        combined = combine(gather_statistics(mine, shard.group), temperature)
        ctx.save_for_backward(logits, local_targets, keep, *combined[1:])
        ctx.shard, ctx.temperature, ctx.masked = shard, temperature, masked
        ctx.overwrite_logits = overwrite_logits
        ctx.set_materialize_grads(False)
        return combined.log_prob.masked_fill(~keep, 0), combined.entropy.masked_fill(~keep, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_prob: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_log_prob is None and grad_entropy is None:
            return (None,) * 6
        logits, local_targets, keep, entropy, maximum, log_sum = ctx.saved_tensors
        check_upstream(grad_log_prob, grad_entropy, ctx.shard)
        # The gradient does not need the log-prob; any tensor of its shape stands in for it.
        combined = VocabularyStatistics(log_prob=log_sum, entropy=entropy, maximum=maximum, log_sum=log_sum)
        coefficients = gradient_coefficients(grad_log_prob, grad_entropy, combined, keep, ctx.temperature)
        # Through detach() the version counter still moves: a second backward, or another user of the
        # overwritten logits, gets autograd's error instead of wrong numbers.
        if ctx.overwrite_logits:
            gradient = logits.detach()
        else:
            gradient = torch.empty_like(logits)
        kernels_for(logits.device).logits_gradient(
            logits, local_targets, keep, ctx.shard.width, ctx.temperature, coefficients, ctx.masked, gradient
        )
        return gradient, None, None, None, None, None


def check_upstream(grad_log_prob: Tensor | None, grad_entropy: Tensor | None, shard: VocabShard) -> None:
    """Raise ValueError, under the debug switch, unless all ranks of the group have the same upstream gradients."""
    if not debug_enabled():
        return
    for name, gradient in (("log-prob", grad_log_prob), ("entropy", grad_entropy)):
        if gradient is not None:
            require_same_on_all_ranks(f"the gradient arriving at {name}", gradient, shard.group)
