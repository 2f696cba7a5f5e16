"""Engine and actor compute the same policy by different kernels: a correction, and how far apart they are."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


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


ENGINE_FLOOR = -9999.0
"""What vLLM reports for a log-probability that is not finite."""


class EpisodeGaps(NamedTuple):
    """|actor - engine| over each episode's sampled tokens, in nats; infinite where either is not finite."""

    total: Float[Tensor, "episodes"]
    max: Float[Tensor, "episodes"]
    """0 for an episode without tokens."""
    tokens: Float[Tensor, "episodes"]
    not_finite: Float[Tensor, "episodes"]
    """How many of the engine's log-probabilities were not finite, or stand at `ENGINE_FLOOR`."""

    @property
    def mean(self) -> Float[Tensor, "episodes"]:
        return self.total / self.tokens.clamp(min=1)


@torch.no_grad()
def episode_gaps(
    actor_logprobs: Float[Tensor, "tokens"], rollout_logprobs: Float[Tensor, "tokens"], lengths: list[int]
) -> EpisodeGaps:
    """The gaps of episodes laid end to end; ``lengths`` are their sampled tokens."""
    engine = rollout_logprobs.double()
    unsound = ~engine.isfinite() | (engine <= ENGINE_FLOOR)
    gap = (actor_logprobs.double() - engine).abs()
    gap = torch.where(gap.isfinite() & ~unsound, gap, math.inf)
    counts = torch.tensor(lengths, dtype=torch.long)
    ids = torch.arange(len(lengths)).repeat_interleave(counts)
    zeros = torch.zeros(len(lengths), dtype=torch.float64)
    return EpisodeGaps(
        total=zeros.scatter_add(0, ids, gap),
        max=zeros.scatter_reduce(0, ids, gap, "amax"),
        tokens=counts.double(),
        not_finite=zeros.scatter_add(0, ids, unsound.double()),
    )


class EngineGap(NamedTuple):
    """The gap over all tokens that one engine sampled."""

    engine: int
    mean: float
    max: float
    tokens: int
    not_finite: int


def engine_gaps(gaps: EpisodeGaps, engines: Int[Tensor, "episodes"]) -> list[EngineGap]:
    """The gap of each engine that sampled an episode, by its index (-1: unknown)."""
    found = []
    for engine in engines.unique().tolist():
        of_it = engines == engine
        tokens = gaps.tokens[of_it].sum()
        found.append(
            EngineGap(
                engine,
                mean=float(gaps.total[of_it].sum() / tokens.clamp(min=1)),
                max=float(gaps.max[of_it].max()),
                tokens=int(tokens),
                not_finite=int(gaps.not_finite[of_it].sum()),
            )
        )
    return found
