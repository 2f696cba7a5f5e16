"""The engines must have sampled from the very policy that the actor holds: versions, and the tokens' log-probs."""

import torch

from megatron_empg.algorithms.base import Scores
from megatron_empg.algorithms.rollout_correction import EngineGap, EpisodeGaps, engine_gaps, episode_gaps
from megatron_empg.recipe import Recipe
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.trainer.errors import TrainingError
from megatron_empg.trainer.staleness import fresh_tokens, gaps_of, staleness_metrics

FEW_TOKENS = 256
"""Below so many tokens an engine's mean is not judged: one unlikely token could decide it."""
OLDER_GAP = 1.0
"""Nats by which an engine's older tokens may differ from the actor's on average, by updates and rounding.

A bound on what is plausible, not a measure: at a lag of 1 the quickstart recipe has 0.007 to 0.022 (measured), and
weights that are not the policy's at all are several nats away. A token whose ratio is e is of no use to the loss.
"""


def check_agreement(batch: Batch, scores: Scores, step: int, recipe: Recipe) -> dict[str, float]:
    """``policy/logprob_gap_…`` and ``policy/entropy``; without tokens none of them.

    Looks at the mean over all tokens, at each engine's mean and at the largest gap of all. Raises TrainingError
    naming the engine when one of them is above its limit, and for a log-probability that is not finite.

    With `rollout.max_lag` it holds to those limits the tokens alone that the actor's own version sampled, and
    ``policy/logprob_gap_checked`` says what share of all they are: 0 where there were too few of them to judge.
    Each engine's older tokens are held to `OLDER_GAP`, so that none passes forever because its tokens are old.
    """
    max_lag = recipe.rollout.max_lag
    _check_versions(batch, step, max_lag)
    experience, ours = batch.experience, scores.logprobs
    if not len(ours):
        return {}
    gaps = episode_gaps(ours, experience.rollout_logprobs, experience.episode_lengths.tolist())
    _check_finite(batch, gaps, step)
    for name, values in (("log-probs", ours), ("entropies", scores.entropies)):
        _check_own(name, values, step)
    metrics = {"policy/entropy": float(scores.entropies.mean())}
    if not max_lag:
        return metrics | _check_gaps(batch, gaps, step, recipe)
    metrics |= staleness_metrics(batch, scores, step, max_lag)
    fresh = fresh_tokens(batch, step)
    _check_older(batch, gaps_of(batch, scores, ~fresh), step, max(OLDER_GAP, recipe.logprob_gap_limit))
    enough = int(fresh.sum()) >= FEW_TOKENS
    metrics["policy/logprob_gap_checked"] = float(fresh.double().mean()) if enough else 0.0
    return metrics | (_check_gaps(batch, gaps_of(batch, scores, fresh), step, recipe) if enough else {})


def _check_gaps(batch: Batch, gaps: EpisodeGaps, step: int, recipe: Recipe) -> dict[str, float]:
    """``policy/logprob_gap_…`` of gaps that rounding alone may make. Raises TrainingError for larger ones."""
    mean, largest = float(gaps.total.sum() / gaps.tokens.sum()), float(gaps.max.max())
    by_engine = engine_gaps(gaps, batch.engines)
    judged = [gap for gap in by_engine if gap.tokens >= FEW_TOKENS]
    _check_means(batch, mean, largest, judged, step, recipe.logprob_gap_limit)
    _check_largest(batch, gaps, step, recipe.logprob_gap_max_limit)
    metrics = {
        "policy/logprob_gap_mean": mean,
        "policy/logprob_gap_max": largest,
        "policy/logprob_gap_episode": float(gaps.mean.max()),
    }
    if judged:
        metrics["policy/logprob_gap_engine"] = max(gap.mean for gap in judged)
    return metrics


def _check_older(batch: Batch, gaps: EpisodeGaps, step: int, limit: float) -> None:
    """Of tokens that older versions sampled. Raises TrainingError for an engine whose mean is above the limit."""
    for gap in engine_gaps(gaps, batch.engines):
        if gap.tokens >= FEW_TOKENS and not gap.mean <= limit:
            raise TrainingError(
                f"step {step}: the log-probs of {_engine(batch, gap.engine)} differ from the actor's by "
                f"{gap.mean:.2e} on average over {gap.tokens} tokens of older versions, above the limit of "
                f"{limit:g}: no update within rollout.max_lag explains so much, so this engine does not hold the "
                "weights whose version it says, or is broken; leave its machine out, or restart it"
            )


def _check_versions(batch: Batch, step: int, max_lag: int) -> None:
    """Every episode's versions, and every token's, must be within the lag."""
    versions, of_tokens = batch.policy_versions, batch.token_versions
    oldest = max(0, step - max_lag)
    allowed = f" (rollout.max_lag allows {oldest} and later)" if max_lag else ""
    wrong = ((versions < oldest) | (versions > step)).any(1).nonzero().flatten().tolist()
    if wrong:
        raise TrainingError(
            f"step {step}: the engines sampled with policy versions {int(versions.min())} to "
            f"{int(versions.max())}, the actor holds version {step}{allowed}; the weights in the engines are "
            f"stale ({_named(batch, wrong)})"
        )
    outside = (of_tokens < oldest) | (of_tokens > step)
    if outside.any():
        owners = batch.experience.episode_of_token[outside].unique().tolist()
        raise TrainingError(
            f"step {step}: {int(outside.sum())} tokens are of policy versions {int(of_tokens.min())} to "
            f"{int(of_tokens.max())}, the actor holds version {step}{allowed}; of a token of "
            f"version -1 no span of its engine says what sampled it ({_named(batch, owners)})"
        )


def _check_finite(batch: Batch, gaps: EpisodeGaps, step: int) -> None:
    wrong = gaps.not_finite.nonzero().flatten().tolist()
    if wrong:
        raise TrainingError(
            f"step {step}: {int(gaps.not_finite.sum())} of the engines' log-probs are not finite (vLLM says -9999 "
            f"for them), in {len(wrong)} episodes of {_named(batch, wrong)}: it computes NaN or infinity, for "
            "its memory or its weights are broken; leave its machine out, or restart it"
        )


def _check_own(name: str, values: torch.Tensor, step: int) -> None:
    if not values.isfinite().all():
        count = int((~values.isfinite()).sum())
        raise TrainingError(
            f"step {step}: {count} of the actor's {name} of the sampled tokens are not finite: its weights are "
            "broken, as by an update that diverged; go on from an earlier checkpoint with a lower "
            "actor.optimizer.lr"
        )


def _check_means(
    batch: Batch, mean: float, largest: float, judged: list[EngineGap], step: int, limit: float
) -> None:
    if not mean <= limit:
        worst = max(judged, key=lambda gap: gap.mean, default=None)
        name = f"; worst {_engine(batch, worst.engine)} with {worst.mean:.2e}" if worst else ""
        raise TrainingError(
            f"step {step}: the engines' log-probs differ from the actor's by {mean:.2e} on average "
            f"(largest {largest:.2e}{name}), above the limit of {limit:g} (limits.logprob_gap): the engines do "
            "not hold the actor's weights, or sample differently from the recipe"
        )
    for gap in judged:
        if not gap.mean <= limit:
            raise TrainingError(
                f"step {step}: the log-probs of {_engine(batch, gap.engine)} differ from the actor's by "
                f"{gap.mean:.2e} on average over {gap.tokens} tokens, above the limit of {limit:g} "
                f"(limits.logprob_gap); over all engines it is {mean:.2e}: this engine does not hold the actor's "
                "weights, or is broken"
            )


def _check_largest(batch: Batch, gaps: EpisodeGaps, step: int, limit: float) -> None:
    episode = int(gaps.max.argmax())
    largest = float(gaps.max[episode])
    if not largest <= limit:
        raise TrainingError(
            f"step {step}: a token's log-prob by {batch.engine_of(episode)} differs from the actor's by "
            f"{largest:.2e}, above the limit of {limit:g} (limits.logprob_gap_max), in episode {episode} of the "
            f"batch, whose mean gap is {float(gaps.mean[episode]):.2e}: some of that engine's weights or memory "
            "are wrong"
        )


def _engine(batch: Batch, index: int) -> str:
    return batch.engine_urls[index] if 0 <= index < len(batch.engine_urls) else "engines that were not noted"


def _named(batch: Batch, episodes: list[int]) -> str:
    """The engines of these episodes."""
    return ", ".join(sorted({batch.engine_of(episode) for episode in episodes}))
