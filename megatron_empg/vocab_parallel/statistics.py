"""How the shards' statistics combine into log-prob and entropy, and what the gradient needs of them.

For scaled logits z = x/τ a shard contributes, per token: m = max x, s = Σ e^d and c = Σ d·e^d with
d = (x − m)/τ, and the target's logit (0 where another shard holds it). With M = max m:

    S = Σ s·e^((m−M)/τ)      C = Σ e^((m−M)/τ)·(c + s·(m−M)/τ)
    log p(target) = (x_target − M)/τ − log S      H = log S − C/S

The sums are centred at the maximum because m + log S − Σx·e^x/S would cancel at large logits.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from megatron_empg.vocab_parallel.collectives import gather_rows

STATISTICS = 4


class VocabularyStatistics(NamedTuple):
    """Statistics of the whole vocabulary per token, the same on all ranks of the group."""

    log_prob: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"]
    maximum: Float[Tensor, " tokens"]
    log_sum: Float[Tensor, " tokens"]


class GradientCoefficients(NamedTuple):
    """∂loss/∂x_j = e^d·(offset + slope·d) + target·[j = target] with d = (x_j − maximum)/τ, per token."""

    maximum: Float[Tensor, " tokens"]
    offset: Float[Tensor, " tokens"]
    slope: Float[Tensor, " tokens"]
    target: Float[Tensor, " tokens"]


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float64 for float64, else float32."""
    if dtype == torch.float64:
        return torch.float64
    return torch.float32


def gather_statistics(
    mine: Float[Tensor, "4 tokens"], group: dist.ProcessGroup | None
) -> Float[Tensor, "ranks 4 tokens"]:
    """The forward pass's one collective: 4 numbers per token from every rank. Skipped where no token is held."""
    if mine.numel():
        return gather_rows(mine, group).view(-1, *mine.shape)
    return mine.unsqueeze(0)


def combine(gathered: Float[Tensor, "ranks 4 tokens"], temperature: float) -> VocabularyStatistics:
    """Log-prob and entropy of the whole vocabulary (formula above); NaN where every logit is -inf."""
    m, s, c, target = gathered.unbind(1)
    maximum = m.amax(0)
    delta = (m - maximum) / temperature
    weight = delta.exp()
    # A shard that holds nothing but -inf has weight 0; its delta, -inf, must not meet that 0.
    delta = delta.masked_fill(m == -torch.inf, 0)
    total = (weight * s).sum(0)
    centred = (weight * (c + delta * s)).sum(0)
    log_sum = total.log()
    log_prob = (target.sum(0) - maximum) / temperature - log_sum
    return VocabularyStatistics(log_prob, log_sum - centred / total, maximum, log_sum)


def gradient_coefficients(
    grad_log_prob: Tensor | None,
    grad_entropy: Tensor | None,
    combined: VocabularyStatistics,
    keep: Bool[Tensor, " tokens"],
    temperature: float,
) -> GradientCoefficients:
    """∂log p(t)/∂x_j = ([j=t] − p_j)/τ and ∂H/∂x_j = −p_j·(log p_j + H)/τ, in terms of d.

    p_j = e^(d − log S), so that p_j·(a + b·log p_j) = e^d·(offset + slope·d). All 0 at ignored tokens.
    """
    zero = torch.zeros_like(combined.log_sum)
    if grad_log_prob is None:
        lp = zero
    else:
        lp = grad_log_prob.masked_fill(~keep, 0)
    if grad_entropy is None:
        h = zero
    else:
        h = grad_entropy.masked_fill(~keep, 0)
    scale = (-combined.log_sum).exp() / temperature
    # An ignored token's logits may be anything, NaN and inf too: 0·NaN must not arise here.
    offset = ((-lp - h * (combined.entropy - combined.log_sum)) * scale).masked_fill(~keep, 0)
    slope = (-h * scale).masked_fill(~keep, 0)
    return GradientCoefficients(combined.maximum, offset, slope, lp / temperature)
