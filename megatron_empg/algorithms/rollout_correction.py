"""Engine and actor compute the same policy by different kernels: a correction, and how far apart they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from megatron_empg.algorithms.base import TokenWeights
from megatron_empg.algorithms.policy_loss import LOG_RATIO_LIMIT
from megatron_empg.common.lazy_torch import torch, without_gradient

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from megatron_empg.algorithms.base import Experience


ENGINE_FLOOR = -9999.0
"""What vLLM reports for a log-probability that is not finite."""

RatioBound = Annotated[float, Field(ge=0, le=1e6)]
"""An end of the interval in which a ratio is kept."""
Level = Literal["token", "sequence"]
"""Whether each token has its own ratio, or a sample's tokens all have the product of theirs."""


@without_gradient
def log_ratios(logprobs: Float[Tensor, "own_tokens"], experience: Experience) -> Float[Tensor, "own_tokens"]:
    """``log(actor / engine)`` of each own token, in float64.

    Raises ValueError where either log-prob is not finite, or the engine's stands at `ENGINE_FLOOR`.
    """
    if logprobs.shape != experience.rollout_logprobs.shape:
        raise ValueError(
            f"the actor has {len(logprobs)} log-probs and the engine {len(experience.rollout_logprobs)}: a "
            "correction needs both of every own token"
        )
    engine, actor = experience.rollout_logprobs, logprobs
    _refuse("rollout", engine, ~engine.isfinite() | (engine <= ENGINE_FLOOR), experience)
    _refuse("actor", actor, ~actor.isfinite(), experience)
    return actor.double() - engine.double()


def _refuse(whose: str, values: Tensor, found: Bool[Tensor, "own_tokens"], experience: Experience) -> None:
    """Raises ValueError if anything is ``found``."""
    if not found.any():
        return
    unsound = found.nonzero().flatten().tolist()
    first = unsound[0]
    episode, value = int(experience.episode_of_token[first]), float(values[first])
    raise ValueError(
        f"the {whose} log-prob of own token {first}, in episode {episode}, is {value} ({len(unsound)} of "
        f"{len(values)} are like it): a correction needs finite numbers above {ENGINE_FLOOR:g}; drop such "
        "episodes, or use the correction none"
    )


@without_gradient
def over_samples(
    log_ratio: Float[Tensor, "own_tokens"], experience: Experience, measure: Literal["product", "geometric_mean"]
) -> Float[Tensor, "own_tokens"]:
    """The log at each token of the product, or of the geometric mean, of its sample's ratios."""
    lengths = experience.sample_lengths
    sample_of_token = torch.arange(len(lengths)).repeat_interleave(lengths)
    totals = torch.zeros(len(lengths), dtype=log_ratio.dtype).index_add(0, sample_of_token, log_ratio)
    if measure == "geometric_mean":
        totals = totals / lengths.clamp(min=1)
    return totals[sample_of_token]


def at_level(
    log_ratio: Float[Tensor, "own_tokens"], experience: Experience, level: Level
) -> Float[Tensor, "own_tokens"]:
    """The log at each token of the ratio that ``level`` means."""
    if level == "token":
        return log_ratio
    return over_samples(log_ratio, experience, "product")


def bounded_ratio(log_ratio: Float[Tensor, "own_tokens"]) -> Float[Tensor, "own_tokens"]:
    """The ratio; where it would overflow or vanish, the ratio at `LOG_RATIO_LIMIT` instead."""
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def inside(log_ratio: Float[Tensor, "own_tokens"], low: float, high: float) -> Bool[Tensor, "own_tokens"]:
    """True where the ratio lies in [low, high]; low may be 0."""
    above_low = log_ratio >= (math.log(low) if low > 0 else -math.inf)
    return above_low & (log_ratio <= math.log(high))


def require_interval(low: float, high: float) -> None:
    """Raises ValueError unless 0 <= low <= 1 <= high: where engine and actor agree nothing may be rejected."""
    if not 0 <= low <= 1 <= high:
        raise ValueError(
            f"the correction keeps ratios in [{low}, {high}]; the interval must hold 1, where engine and actor "
            "agree, and start at 0 or above: set low in [0, 1] and high at 1 or above"
        )


def truncated(weights: Tensor, beyond: Bool[Tensor, "own_tokens"], dtype: torch.dtype) -> TokenWeights:
    """The weights and metrics of a correction that held them at a cap where they were ``beyond`` it."""
    if not len(weights):
        return TokenWeights(weights.to(dtype))
    metrics = {
        "correction/mean_weight": float(weights.mean()),
        "correction/truncated_share": float(beyond.double().mean()),
    }
    return TokenWeights(weights.to(dtype), metrics)


def rejected(
    weights: Tensor, kept: Bool[Tensor, "own_tokens"], experience: Experience, dtype: torch.dtype
) -> TokenWeights:
    """The weights and metrics of a correction that sets weights to 0 where they are not ``kept``.

    Rejected tokens still count in the loss's mean.
    """
    weights = torch.where(kept, weights, 0)
    if not len(weights):
        return TokenWeights(weights.to(dtype))
    left = torch.zeros(len(experience.rewards), dtype=torch.long)
    left = left.index_add(0, experience.episode_of_token, kept.long())
    played = experience.episode_lengths > 0
    metrics = {
        "correction/mean_weight": float(weights.mean()),
        "correction/rejected_tokens": float((~kept).double().mean()),
        "correction/rejected_episodes": float((left[played] == 0).double().mean()),
    }
    return TokenWeights(weights.to(dtype), metrics)


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


@without_gradient
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
        tokens, not_finite = gaps.tokens[of_it].sum(), gaps.not_finite[of_it].sum()
        mean = gaps.total[of_it].sum() / tokens.clamp(min=1)
        largest = gaps.max[of_it].max()
        found.append(EngineGap(engine, float(mean), float(largest), int(tokens), int(not_finite)))
    return found
