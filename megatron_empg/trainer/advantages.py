"""What an algorithm made of a batch, for readers: metrics, and episodes with their numbers beside the texts."""

import torch
from jaxtyping import Int
from torch import Tensor

from megatron_empg.algorithms.base import Credit, Experience
from megatron_empg.rollout.service.batch import Batch, first_episodes
from megatron_empg.run.episode_text import EpisodeRecord, TurnNumbers

QUANTILES = {"min": 0.0, "q05": 0.05, "median": 0.5, "q95": 0.95, "max": 1.0}


def credit_metrics(credit: Credit) -> dict[str, float]:
    """``policy/step_entropy_…`` and the metrics of the algorithm's parts; none for a batch without turns."""
    if not len(credit.entropies):
        return {}
    marks = torch.tensor(list(QUANTILES.values()), dtype=torch.float64)
    quantiles = credit.entropies.double().quantile(marks).tolist()
    spread = {f"policy/step_entropy_{name}": value for name, value in zip(QUANTILES, quantiles, strict=True)}
    return {**spread, **credit.metrics}


def annotated_episodes(step: int, batch: Batch, credit: Credit, count: int) -> list[EpisodeRecord]:
    """The `first_episodes`, as far as their texts are at hand."""
    experience = batch.experience
    annotated = []
    for episode in first_episodes(experience.groups, count):
        text = batch.texts[episode]
        if text is None:
            continue
        turns = experience.turns_of([episode])
        annotated.append(
            EpisodeRecord(
                step,
                text,
                reward=float(experience.rewards[episode]),
                advantage=float(credit.advantages.episodes[episode]),
                turns=_numbers(experience, credit, turns),
            )
        )
    return annotated


def _numbers(experience: Experience, credit: Credit, turns: Int[Tensor, "chosen_turns"]) -> list[TurnNumbers]:
    """What each of these turns was trained on."""
    parts = credit.modulated
    numbers = []
    for turn in turns.tolist():
        h_norm = scale = bonus = None
        if parts is not None:
            h_norm, scale, bonus = float(parts.h_norm[turn]), float(parts.scale[turn]), float(parts.bonus[turn])
        entropy, advantage = float(credit.entropies[turn]), float(credit.turns[turn])
        tokens = int(experience.turn_lengths[turn])
        numbers.append(TurnNumbers(entropy, advantage, tokens, h_norm=h_norm, g=scale, bonus=bonus))
    return numbers
