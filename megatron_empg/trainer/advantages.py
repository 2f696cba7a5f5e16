"""From rewards and entropies to what each token is trained on: group advantage, step modulation, log of both."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from megatron_empg.actor.actor import Score
from megatron_empg.actor.packing import Sequence
from megatron_empg.algorithms.empg import Modulation, modulation
from megatron_empg.algorithms.grpo import group_advantages
from megatron_empg.recipe import AlgorithmSection
from megatron_empg.trainer.batch import Batch, first_episodes


@dataclass
class Assignment:
    """What every step of the batch got, and why."""

    trajectory: Float[Tensor, "episodes"]
    """Group advantage of each episode."""
    trajectory_ids: Int[Tensor, "steps"]
    step_entropies: Float[Tensor, "steps"]
    step_advantages: Float[Tensor, "steps"]
    step_lengths: Int[Tensor, "steps"]
    """Own tokens of each step: its weight in the loss."""
    modulation: Modulation | None
    """EMPG's parts; None without modulation."""
    centered: bool = False
    """Whether the modulation took the mean over steps away."""


def assign_advantages(batch: Batch, scores: list[Score], algorithm: AlgorithmSection) -> Assignment:
    """Step advantages of the whole batch, the same on every rank (each holds all episodes)."""
    trajectory = group_advantages(batch.rewards, batch.groups, normalize_std=algorithm.base.normalize_std)
    counts = torch.tensor([len(s.steps) for s in batch.sequences], dtype=torch.long)
    ids = torch.arange(len(counts)).repeat_interleave(counts)
    entropies = step_entropies(batch.sequences, scores)
    advantages = trajectory[ids]
    parts = None
    if algorithm.modulation == "empg":
        parts = modulation(advantages, entropies, ids, **algorithm.empg.model_dump())
        advantages = parts.advantage
    lengths = torch.tensor([length for s in batch.sequences for length in s.step_lengths], dtype=torch.long)
    return Assignment(trajectory, ids, entropies, advantages, lengths, parts, algorithm.empg.center)


def step_entropies(sequences: list[Sequence], scores: list[Score]) -> Float[Tensor, "steps"]:
    """Mean entropy (nats) over each step's own tokens: H_t of the paper."""
    means = [
        part.mean()
        for sequence, score in zip(sequences, scores, strict=True)
        for part in score.entropies.split(sequence.step_lengths)
    ]
    return torch.stack(means) if means else torch.empty(0)


def training_sequences(batch: Batch, scores: list[Score], assignment: Assignment) -> list[Sequence]:
    """The batch with ``old_logprobs`` and each own token's ``advantages``, ready for `Actor.update`."""
    ready = []
    by_episode = assignment.step_advantages.split([len(s.steps) for s in batch.sequences])
    for sequence, score, advantages in zip(batch.sequences, scores, by_episode, strict=True):
        lengths = torch.tensor(sequence.step_lengths)
        values = {
            "old_logprobs": score.logprobs,
            "advantages": advantages.repeat_interleave(lengths),
        }
        ready.append(Sequence(sequence.tokens, sequence.steps, values))
    return ready


def assignment_metrics(assignment: Assignment) -> dict[str, float]:
    """``policy/step_entropy_…`` and ``empg/…``."""
    entropies = assignment.step_entropies.double()
    if not len(entropies):
        return {}
    marks = torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0], dtype=torch.float64)
    names = ("min", "q05", "median", "q95", "max")
    quantiles = zip(names, entropies.quantile(marks).tolist(), strict=True)
    metrics = {f"policy/step_entropy_{name}": value for name, value in quantiles}
    if assignment.modulation is not None:
        parts = assignment.modulation
        metrics |= {
            "empg/h_norm_mean": float(parts.h_norm.mean()),
            "empg/g_min": float(parts.g.min()),
            "empg/g_max": float(parts.g.max()),
            "empg/bonus_mean": float(parts.bonus.mean()),
            "empg/advantage_mean": float(parts.advantage.mean()),
            **_by_tokens(assignment, parts),
        }
    return metrics


def _by_tokens(assignment: Assignment, parts: Modulation) -> dict[str, float]:
    """What the loss sees of the modulation: it averages over tokens, where the statistics are over steps."""
    weights = assignment.step_lengths.double() / assignment.step_lengths.sum()
    advantage, bonus = parts.advantage.double(), parts.bonus.double()
    scaled = assignment.trajectory[assignment.trajectory_ids].double() * parts.g.double()
    if assignment.centered:  # what centring takes away in all is the sum of the two parts' means
        scaled, bonus = scaled - scaled.mean(), bonus - bonus.mean()
    from_bonus, in_all = (weights * bonus.abs()).sum(), (weights * (scaled.abs() + bonus.abs())).sum()
    equal = assignment.trajectory[assignment.trajectory_ids] == 0
    metrics = {
        "empg/advantage_token_mean": float((weights * advantage).sum()),
        "empg/bonus_only_tokens": float(weights[equal].sum()),
    }
    if in_all > 0:
        metrics["empg/bonus_share"] = float(from_bonus / in_all)
    return metrics


def annotated_episodes(step: int, batch: Batch, assignment: Assignment, count: int) -> list[dict[str, Any]]:
    """The first `count` episodes of different groups, each turn beside what the algorithm made of it."""
    chosen = first_episodes(batch.groups, count)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), assignment.trajectory_ids.bincount().cumsum(0)])
    annotated = []
    for index in chosen:
        lengths = batch.sequences[index].step_lengths
        turns = []
        for turn, (length, position) in enumerate(
            zip(lengths, range(int(starts[index]), int(starts[index + 1])), strict=True)
        ):
            numbers = {
                "entropy": float(assignment.step_entropies[position]),
                "advantage": float(assignment.step_advantages[position]),
                "tokens": length,
            }
            if assignment.modulation is not None:
                for name in ("h_norm", "g", "bonus"):
                    numbers[name] = float(getattr(assignment.modulation, name)[position])
            turns.append({**batch.episodes[index]["turns"][turn], **numbers})
        annotated.append({
            **batch.episodes[index],
            "step": step,
            "reward": float(batch.rewards[index]),
            "advantage": float(assignment.trajectory[index]),
            "turns": turns,
        })  # fmt: skip
    return annotated
