"""How old the tokens of a batch are: versions between the policy that sampled one and the one that is trained."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from megatron_empg.algorithms.base import Scores
from megatron_empg.algorithms.rollout_correction import EpisodeGaps, episode_gaps
from megatron_empg.rollout.service.batch import Batch


def staleness_metrics(batch: Batch, scores: Scores, step: int, max_lag: int) -> dict[str, float]:
    """``stream/lag_…`` over own tokens, and the mean gap of log-probs at each age; none without tokens.

    The gaps of older tokens are what the updates since then changed, and rounding.
    """
    lags = step - batch.token_versions
    if not len(lags):
        return {}
    metrics = {"stream/lag_mean": float(lags.double().mean()), "stream/lag_max": float(lags.max())}
    gaps = (scores.logprobs.double() - batch.experience.rollout_logprobs.double()).abs()
    for lag in range(max_lag + 1):
        of_age = lags == lag
        metrics[f"stream/lag_share_{lag}"] = float(of_age.double().mean())
        if of_age.any():
            metrics[f"policy/logprob_gap_lag_{lag}"] = float(gaps[of_age].mean())
    return metrics


def fresh_tokens(batch: Batch, step: int) -> Bool[Tensor, "own_tokens"]:
    """Those that the very policy sampled which is trained: of them engine and actor must say the same."""
    return batch.token_versions == step


def gaps_of(batch: Batch, scores: Scores, chosen: Bool[Tensor, "own_tokens"]) -> EpisodeGaps:
    """The gaps of the chosen tokens alone, by episode."""
    lengths = _lengths(batch, chosen).tolist()
    return episode_gaps(scores.logprobs[chosen], batch.experience.rollout_logprobs[chosen], lengths)


def _lengths(batch: Batch, chosen: Bool[Tensor, "own_tokens"]) -> Int[Tensor, "episodes"]:
    """Chosen tokens of each episode."""
    owners = batch.experience.episode_of_token[chosen]
    return torch.bincount(owners, minlength=batch.episodes)
