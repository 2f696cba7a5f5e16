"""One batch's optimizer steps with the clipped policy loss."""

import random
from dataclasses import dataclass

from torch import Tensor

from megatron_empg.actor.actor import Actor, UpdateReport
from megatron_empg.actor.packing import Sequence
from megatron_empg.algorithms.policy_loss import clipped_policy_loss, kl_estimate
from megatron_empg.recipe import AlgorithmSection


class PolicyLoss:
    """The clipped surrogate of each own token (see `clipped_policy_loss`), and two terms with gradient.

    ``kl_coefficient`` times the k3 estimate of the KL to the policy of ``values["reference_logprobs"]``, which the
    values hold where it is above 0; minus ``entropy_coefficient`` times the exact entropy.
    """

    def __init__(
        self, clip_low: float, clip_high: float, *, kl_coefficient: float = 0.0, entropy_coefficient: float = 0.0
    ) -> None:
        self.clip_low, self.clip_high = clip_low, clip_high
        self.kl_coefficient, self.entropy_coefficient = kl_coefficient, entropy_coefficient
        kl = ("kl_to_reference",) if kl_coefficient else ()
        self.statistics: tuple[str, ...] = ("approx_kl", "clipped", "ratio", *kl)

    def __call__(
        self, logprob: Tensor, entropy: Tensor, values: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, statistics = clipped_policy_loss(
            logprob,
            values["old_logprobs"],
            values["advantages"],
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )
        if self.kl_coefficient:
            kl = kl_estimate(logprob, values["reference_logprobs"])
            loss = loss + self.kl_coefficient * kl
            statistics["kl_to_reference"] = kl.detach()
        if self.entropy_coefficient:
            loss = loss - self.entropy_coefficient * entropy
        return loss, statistics


@dataclass(frozen=True)
class PolicyUpdate:
    """What one batch's optimizer steps did."""

    metrics: dict[str, float]
    applied: list[bool]
    """Of each optimizer step, in order: false when loss or gradient was not finite and it was skipped."""


def update_policy(
    actor: Actor, sequences: list[Sequence], algorithm: AlgorithmSection, *, temperature: float, seed: int
) -> PolicyUpdate:
    """`updates_per_batch` optimizer steps, each on its part of the shuffled sequences; metrics ``policy/…``.

    With fewer sequences than that there are fewer steps. The schedule goes on by `updates_per_batch` all the same.
    """
    loss = PolicyLoss(
        algorithm.base.clip_low,
        algorithm.base.clip_high,
        kl_coefficient=algorithm.kl_coefficient,
        entropy_coefficient=algorithm.entropy_coefficient,
    )
    order = list(range(len(sequences)))
    random.Random(seed).shuffle(order)
    parts = min(algorithm.updates_per_batch, len(sequences))
    reports = []
    for part in range(parts):
        chosen = [sequences[i] for i in order[part::parts]]
        reports.append(actor.update(chosen, loss, temperature=temperature, mean=algorithm.loss_mean))
    if parts < algorithm.updates_per_batch:
        actor.skip_updates(algorithm.updates_per_batch - parts)
    return PolicyUpdate(update_metrics(reports), [r.applied for r in reports])


_REPORTED = {
    "approx_kl": "policy/approx_kl",
    "clipped": "policy/clip_fraction",
    "ratio": "policy/ratio",
    "kl_to_reference": "policy/kl_to_reference",
    "entropy": "policy/update_entropy",
}
"""The loss's token means, by the metric that each is."""


def update_metrics(reports: list[UpdateReport]) -> dict[str, float]:
    """Means over the optimizer steps that were applied, weighted by tokens; without such a step none of them."""
    applied = [r for r in reports if r.applied]
    metrics = {"skipped_updates": float(len(reports) - len(applied)), "policy/lr": reports[-1].lr}
    tokens = sum(r.tokens for r in applied)
    if not tokens:
        return metrics

    def mean(values: list[float]) -> float:
        return sum(value * r.tokens for value, r in zip(values, applied, strict=True)) / tokens

    norms = [r.grad_norm for r in applied]
    metrics |= {
        "policy/loss": mean([r.loss for r in applied]),
        "policy/grad_norm": sum(norms) / len(norms),
        "policy/grad_norm_max": max(norms),
    }
    for statistic, name in _REPORTED.items():
        if statistic in applied[0].means:
            metrics[name] = mean([r.means[statistic] for r in applied])
    return metrics
