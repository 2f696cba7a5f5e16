"""One batch's optimizer steps with the clipped policy loss."""

import random

import torch
from torch import Tensor

from megatron_empg.actor.actor import Actor
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


def update_policy(
    actor: Actor, sequences: list[Sequence], algorithm: AlgorithmSection, *, temperature: float, seed: int
) -> dict[str, float]:
    """`updates_per_batch` optimizer steps, each on its part of the shuffled sequences; metrics ``policy/…``."""
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
    weights = torch.tensor([float(r.tokens) for r in reports], dtype=torch.float64)
    weights /= weights.sum().clamp(min=1)

    def mean(values: list[float]) -> float:
        return float((torch.tensor(values, dtype=torch.float64) * weights).sum())

    return {
        "policy/loss": mean([r.loss for r in reports]),
        "policy/grad_norm": reports[-1].grad_norm,
        "policy/lr": reports[-1].lr,
        "policy/approx_kl": mean([r.means["approx_kl"] for r in reports]),
        "policy/clip_fraction": mean([r.means["clipped"] for r in reports]),
        "skipped_updates": float(sum(not r.applied for r in reports)),
    }
