"""One batch's optimizer steps with the algorithm's loss."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from megatron_empg.actor.actor import Actor, UpdateReport
from megatron_empg.algorithms.algorithm import Algorithm
from megatron_empg.algorithms.base import Credit, Experience, Scores


@dataclass(frozen=True)
class PolicyUpdate:
    """What one batch's optimizer steps did."""

    metrics: dict[str, float]
    applied: list[bool]
    """Of each optimizer step, in order: false when loss or gradient was not finite and it was skipped."""


def update_policy(
    actor: Actor,
    algorithm: Algorithm,
    experience: Experience,
    scores: Scores,
    credit: Credit,
    *,
    temperature: float,
    seed: int,
    agree: Callable[[bool], bool] = lambda flag: flag,
) -> PolicyUpdate:
    """`updates_per_batch` optimizer steps, each on its part of the shuffled episodes; metrics ``policy/…``.

    With fewer episodes than that there are fewer steps, and none on a part of which the loss sees no token. The
    schedule goes on by `updates_per_batch` all the same. ``agree`` makes one answer of all ranks', which rounding
    might tell apart: collectives follow from it.
    """
    wanted = algorithm.section.updates_per_batch
    loss = algorithm.loss()
    reports, masked = [], 0
    for episodes in split_episodes(len(experience.rewards), wanted, seed):
        seen = credit.kept[experience.tokens_of(episodes)]
        if not agree(bool(seen.any())):
            masked += 1
            continue
        samples = algorithm.samples(experience, scores, credit, episodes)
        reports.append(actor.update(samples, loss, temperature=temperature))
    if len(reports) < wanted:
        actor.skip_updates(wanted - len(reports))
    metrics = update_metrics(reports)
    if masked:
        metrics["masked_updates"] = float(masked)
    return PolicyUpdate(metrics, [report.applied for report in reports])


def split_episodes(episodes: int, parts: int, seed: int) -> Iterator[list[int]]:
    """The shuffled episodes, dealt out to so many parts, or to fewer where there are fewer."""
    order = list(range(episodes))
    random.Random(seed).shuffle(order)
    parts = min(parts, episodes)
    for part in range(parts):
        yield order[part::parts]


_REPORTED = {
    "approx_kl": "policy/approx_kl",
    "clipped": "policy/clip_fraction",
    "ratio": "policy/ratio",
    "kl_to_reference": "policy/kl_to_reference",
    "entropy": "policy/update_entropy",
}
"""The loss's token means that have another name as metrics; the others are ``policy/NAME``."""


def update_metrics(reports: list[UpdateReport]) -> dict[str, float]:
    """Means over the optimizer steps that were applied, weighted by tokens; without such a step none of them."""
    applied = [report for report in reports if report.applied]
    metrics = {"skipped_updates": float(len(reports) - len(applied))}
    if reports:
        metrics["policy/lr"] = reports[-1].lr
    tokens = sum(report.tokens for report in applied)
    if not tokens:
        return metrics

    def mean(values: list[float]) -> float:
        return sum(value * r.tokens for value, r in zip(values, applied, strict=True)) / tokens

    norms = [report.grad_norm for report in applied]
    metrics |= {
        "policy/loss": mean([report.loss for report in applied]),
        "policy/grad_norm": sum(norms) / len(norms),
        "policy/grad_norm_max": max(norms),
    }
    for statistic in applied[0].means:
        name = _REPORTED.get(statistic, f"policy/{statistic}")
        metrics[name] = mean([report.means[statistic] for report in applied])
    return metrics
