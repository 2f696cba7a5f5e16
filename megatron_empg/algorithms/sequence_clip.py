"""The policy loss with one ratio for a whole sample, clipped as one: GSPO's and SAMPO's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_empg.algorithms.policy_loss import LOG_RATIO_LIMIT
from megatron_empg.common.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_empg.algorithms.sample import TokenStreams
    from megatron_empg.algorithms.segments import Segments


class SequenceClip:
    """``max(-A·s, -A·clip(s, 1 - clip_low, 1 + clip_high))`` with s the geometric mean of a sample's token ratios.

    ``s = exp(mean over the sample's own tokens of logprobs - old_logprobs)`` (GSPO, arXiv 2507.18071), of which
    masked tokens are none: what the loss does not see decides on no clip. A is the token's own, so that turns may
    differ: that is GSPO-token, and for equal advantages GSPO itself. The statistics ``ratio`` and ``clipped`` are
    of s; ``approx_kl`` is of the tokens, as in `clipped_policy_loss`.
    """

    weighted: bool = False

    def __init__(self, clip_low: float, clip_high: float) -> None:
        self.clip_low, self.clip_high = clip_low, clip_high
        self.statistics: tuple[str, ...] = ("ratio", "clipped", "approx_kl")

    def __call__(
        self, logprobs: Tensor, entropies: Tensor, streams: TokenStreams, segments: Segments
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert streams.old_logprobs is not None
        assert streams.advantages is not None
        assert streams.mean_weights is not None
        log_ratio = (logprobs - streams.old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        # A sample's tokens may lie on several ranks, so its mean has no gradient. A zero that has the gradient of
        # the token's log-prob gives every token s·∇log p; the sample's mean of these is the gradient of s.
        of_sample = segments.sample_means(log_ratio, streams.mean_weights != 0)
        ratio = (of_sample + (logprobs - logprobs.detach())).exp()
        free = -streams.advantages * ratio
        bounded = -streams.advantages * ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        statistics = {
            "ratio": ratio.detach(),
            "clipped": (bounded > free).to(ratio.dtype),
            "approx_kl": (torch.expm1(log_ratio) - log_ratio).detach(),
        }
        return torch.maximum(free, bounded), statistics
