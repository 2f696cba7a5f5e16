"""One batch's optimizer steps with the clipped policy loss."""

import random

import torch
from torch import Tensor

from megatron_empg.actor.actor import Actor
from megatron_empg.actor.packing import Sequence
from megatron_empg.algorithms.policy_loss import clipped_policy_loss
from megatron_empg.recipe import AlgorithmSection


class PolicyLoss:
    """The clipped surrogate of each own token (see `clipped_policy_loss`)."""

    statistics: tuple[str, ...] = ("approx_kl", "clipped", "ratio")

    def __init__(self, clip_low: float, clip_high: float) -> None:
        self.clip_low, self.clip_high = clip_low, clip_high

    def __call__(
        self, logprob: Tensor, entropy: Tensor, values: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return clipped_policy_loss(
            logprob,
            values["old_logprobs"],
            values["advantages"],
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )


def update_policy(
    actor: Actor, sequences: list[Sequence], algorithm: AlgorithmSection, *, temperature: float, seed: int
) -> dict[str, float]:
    """`updates_per_batch` optimizer steps, each on its part of the shuffled sequences; metrics ``policy/…``."""
    loss = PolicyLoss(algorithm.base.clip_low, algorithm.base.clip_high)
    order = list(range(len(sequences)))
    random.Random(seed).shuffle(order)
    parts = min(algorithm.updates_per_batch, len(sequences))
    reports = []
    for part in range(parts):
        chosen = [sequences[i] for i in order[part::parts]]
        reports.append(actor.update(chosen, loss, temperature=temperature))
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
