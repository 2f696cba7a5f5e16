"""What the papers measure beside training: entropies before and after an update, and the gradient of single turns.

The figures are `algorithms.diagnostics`'; here is what they need of the actor. No weight moves.
"""

import torch
from torch import Tensor

from megatron_empg.actor.actor import Actor
from megatron_empg.algorithms.base import Experience, Scores
from megatron_empg.algorithms.diagnostics import entropy_change, gradient_norms_by_entropy
from megatron_empg.algorithms.sample import Sample, TokenStreams
from megatron_empg.algorithms.segments import Segments
from megatron_empg.trainer.scoring import score_samples


class TurnScore:
    """Minus the log-prob: its gradient is the score function, which a policy gradient multiplies by advantages."""

    statistics: tuple[str, ...] = ()

    def __call__(
        self, logprobs: Tensor, entropies: Tensor, streams: TokenStreams, segments: Segments
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return -logprobs, {}


def turn_gradients(
    actor: Actor, experience: Experience, scores: Scores, turns: int, temperature: float
) -> dict[str, float]:
    """``diagnostics/gradient_norm…``: the norm with respect to the parameters of each of so many turns' mean
    log-prob, by the turn's entropy. Every rank enters."""
    alone = [turn_alone(sample, turn) for sample in experience.samples for turn in range(len(sample.turns))]
    chosen = evenly_spread(len(alone), turns)
    norms = [actor.gradient_norm([alone[turn]], TurnScore(), temperature=temperature) for turn in chosen]
    entropies = experience.turn_means(scores.entropies)[torch.tensor(chosen, dtype=torch.long)]
    _, metrics = gradient_norms_by_entropy(torch.tensor(norms, dtype=torch.float64), entropies)
    return metrics


def turn_alone(sample: Sample, turn: int) -> Sample:
    """The sample up to the end of one of its turns, which is the only one that counts as the policy's own."""
    end = int(sample.turns[turn, 1])
    return Sample(sample.tokens[:end], sample.turns[turn : turn + 1])


def evenly_spread(items: int, wanted: int) -> list[int]:
    """So many of the items' numbers, or all, at even distances."""
    count = min(items, wanted)
    return [place * items // count for place in range(count)]


def entropy_changes(actor: Actor, experience: Experience, scores: Scores, temperature: float) -> dict[str, float]:
    """``diagnostics/entropy_change…`` of the batch's turns, from before an update (``scores``) to now."""
    after = score_samples(actor, experience.samples, temperature)
    before = experience.turn_means(scores.entropies)
    _, metrics = entropy_change(before, experience.turn_means(after.entropies))
    return metrics
