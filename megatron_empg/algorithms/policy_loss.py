"""The clipped policy-gradient loss of each token, and KL estimators. Nothing is reduced here: the mean over the
tokens of all ranks and microbatches is the actor's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from megatron_empg.common.lazy_torch import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from megatron_empg.algorithms.sample import TokenStreams
    from megatron_empg.algorithms.segments import Segments

DualClip = Annotated[float, Field(gt=1, le=1e6)]
"""By how many times its size a negative advantage may count at most."""

LOG_RATIO_LIMIT = 20.0  # exp(20) is far outside every clip and still finite in float32


def clipped_policy_loss(
    logprobs: Float[Tensor, "*tokens"],
    old_logprobs: Float[Tensor, "*tokens"],
    advantages: Float[Tensor, "*tokens"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[Float[Tensor, "*tokens"], dict[str, Tensor]]:
    """``max(-A·r, -A·clip(r, 1 - clip_low, 1 + clip_high))`` with ``r = exp(logprobs - old_logprobs)``.

    PPO (arXiv 1707.06347); unequal clips are DAPO's clip-higher. ``dual_clip`` c > 1 also bounds the loss by
    ``-A·c`` where A < 0 (arXiv 1912.09729). Returns the loss and detached values, all per token: ``ratio``,
    ``clipped`` (1 where a clip decides, so that the token has no gradient), ``approx_kl`` (k3 estimate of the
    KL from old to new policy, tokens drawn from old). Raises ValueError for unequal shapes or dual_clip <= 1.
    """
    if not logprobs.shape == old_logprobs.shape == advantages.shape:
        raise ValueError(
            f"logprobs {tuple(logprobs.shape)}, old_logprobs {tuple(old_logprobs.shape)} and advantages "
            f"{tuple(advantages.shape)} must have one shape"
        )
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip is {dual_clip}; it must be above 1, commonly 3")
    log_ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(free, bounded)
    clipped = bounded > free
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        beyond = (advantages < 0) & (loss > ceiling)
        loss = torch.where(beyond, ceiling, loss)
        clipped = clipped | beyond
    stats = {
        "ratio": ratio.detach(),
        "clipped": clipped.detach().to(loss.dtype),
        "approx_kl": (torch.expm1(log_ratio) - log_ratio).detach(),
    }
    return loss, stats


class TokenClip:
    """`clipped_policy_loss`: each token's own ratio is clipped."""

    weighted: bool = False

    def __init__(self, clip_low: float, clip_high: float, dual_clip: float | None = None) -> None:
        self.clip_low, self.clip_high, self.dual_clip = clip_low, clip_high, dual_clip
        self.statistics: tuple[str, ...] = ("ratio", "clipped", "approx_kl")

    def __call__(
        self, logprobs: Tensor, entropies: Tensor, streams: TokenStreams, segments: Segments
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert streams.old_logprobs is not None
        assert streams.advantages is not None
        return clipped_policy_loss(
            logprobs,
            streams.old_logprobs,
            streams.advantages,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
        )


def kl_estimate(
    logprobs: Float[Tensor, "*tokens"],
    reference_logprobs: Float[Tensor, "*tokens"],
    estimator: Literal["k1", "k2", "k3"] = "k3",
) -> Float[Tensor, "*tokens"]:
    """KL of the policy to a reference, estimated from tokens the policy drew; differentiable.

    k1 is ``log p - log q``: unbiased, often negative. k2 is half its square: never negative, near the KL where the
    two are near. k3 is ``q/p - 1 - log(q/p)``: unbiased, never negative, of lower variance. Only k2's gradient, on
    average over the policy's own tokens, is that of the KL (see kl.py). Source: J. Schulman, "Approximating KL
    divergence" (2020). Raises ValueError for another estimator.
    """
    log_ratio = reference_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    if estimator == "k3":
        log_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"estimator is {estimator!r}; it must be 'k1', 'k2' or 'k3'")
