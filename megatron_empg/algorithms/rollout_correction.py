"""Engine and actor compute the same policy by different kernels: how far apart they are, and a correction."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from megatron_empg.algorithms.collectives import Group, reduce_max, reduce_sum


def truncated_importance_weights(
    actor_logprobs: Float[Tensor, "*tokens"],
    rollout_logprobs: Float[Tensor, "*tokens"],
    *,
    cap: float = 2.0,
) -> Float[Tensor, "*tokens"]:
    """``min(exp(actor - rollout), cap)`` per token, detached: a factor of the token's loss.

    ``actor_logprobs`` are those of the scored (old) policy, ``rollout_logprobs`` those the engine sampled with.
    Source: truncated importance sampling (Yao et al., 2025). Raises ValueError unless cap > 0.
    """
    if not cap > 0:
        raise ValueError(f"cap is {cap}; it must be above 0, commonly 2")
    log_ratio = (actor_logprobs - rollout_logprobs).detach()
    return log_ratio.clamp(max=math.log(cap)).exp()


class LogprobGap(NamedTuple):
    """|actor - engine| over sampled tokens, in nats; infinite where a log-probability is not finite."""

    mean: float
    max: float
    tokens: int


@torch.no_grad()
def logprob_gap(
    actor_logprobs: Float[Tensor, "tokens"],
    rollout_logprobs: Float[Tensor, "tokens"],
    *,
    group: Group | None = None,
) -> LogprobGap:
    """Mean and largest gap over the tokens of all ranks of ``group``; every rank must call. 0 without tokens."""
    gap = (actor_logprobs.double() - rollout_logprobs.double()).abs()
    # NaN would pass every "gap > limit" comparison unseen.
    gap = torch.where(gap.isfinite(), gap, math.inf)
    largest = gap.max() if gap.numel() else gap.new_zeros(())
    total, tokens = reduce_sum(torch.stack([gap.sum(), gap.new_tensor(float(gap.numel()))]), group).tolist()
    (highest,) = reduce_max(largest.reshape(1), group).tolist()
    return LogprobGap(mean=total / max(tokens, 1.0), max=highest, tokens=int(tokens))
