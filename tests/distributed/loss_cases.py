"""Losses for the actor, what it is given for each, and the same losses written out from their equations.

The equations are dense, in float64, a sample at a time, differentiated by autograd: nothing of them is the
project's. A `Loss` says how the actor's is made, of which samples, and what its equation is.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.actor_cases import fresh_actor, sequences, weights_of, with_streams

TEMPERATURE = 0.9
KL, BONUS = 0.3, 0.2  # heavy enough to be missed
EPO = {"coefficient": 0.2, "beta": 0.7, "alpha": 2.0, "form": "distance", "history": "batch"}
SEQUENCE_CLIP = 0.02, 0.03


@dataclass(frozen=True)
class Dense:
    """A sample and what a float64 model says of its own tokens, with gradient."""

    sample: Any
    logprobs: Tensor
    entropies: Tensor

    def stream(self, name: str) -> Tensor:
        return getattr(self.sample.streams, name).double()

    @property
    def kept(self) -> Tensor:
        """False where the loss does not look."""
        return self.stream("mean_weights") != 0

    def turns(self, values: Tensor) -> list[Tensor]:
        return list(values.split(self.sample.turn_lengths))


@dataclass(frozen=True)
class Loss:
    name: str
    make: Callable[[], Any]
    """The actor's loss function."""
    prepare: Callable[[list[Any]], list[Any]]
    """Its samples, of those that all losses share."""
    equation: Callable[[list[Dense]], Tensor]
    """The whole loss."""


# The equations


def token_clip(of: Dense) -> Tensor:
    """PPO's surrogate with DAPO's two clips, weighed by the correction."""
    ratio, advantages = (of.logprobs - of.stream("old_logprobs")).exp(), of.stream("advantages")
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    return -surrogate * of.stream("loss_weights")


def kl(of: Dense) -> Tensor:
    """The value of k3, with the gradient of half the squared log-ratio, which on tokens of the policy's is that of
    the KL. The ratio to the old policy, whose tokens these are, makes them so."""
    gap = of.logprobs - of.stream("reference_logprobs")
    ratio = (of.logprobs - of.stream("old_logprobs")).exp().detach()
    half = gap.square() / 2
    k3 = (-gap).exp() + gap - 1
    return ratio * (k3.detach() + half - half.detach())


def all_terms(of: Dense) -> Tensor:
    return token_clip(of) + KL * kl(of) - BONUS * of.entropies


def one_ratio(of: Dense) -> Tensor:
    """GSPO: the geometric mean of the kept tokens' ratios is clipped as one."""
    low, high = SEQUENCE_CLIP
    ratio, advantages = (of.logprobs - of.stream("old_logprobs"))[of.kept].mean().exp(), of.stream("advantages")
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    return -surrogate * of.stream("loss_weights")


def ratio_of_each_token(of: Dense) -> Tensor:
    """GSPO-token: the sample's ratio in value, the token's own in gradient, for advantages that differ by turn."""
    low, high = SEQUENCE_CLIP
    whole, advantages = (of.logprobs - of.stream("old_logprobs"))[of.kept].mean().exp(), of.stream("advantages")
    ratio = whole.detach() * of.logprobs.exp() / of.logprobs.exp().detach()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    return -surrogate * of.stream("loss_weights")


def token_mean(per_token: Callable[[Dense], Tensor]) -> Callable[[list[Dense]], Tensor]:
    def loss(batch: list[Dense]) -> Tensor:
        return torch.cat([per_token(of)[of.kept] for of in batch]).mean()

    return loss


def sequence_mean(per_token: Callable[[Dense], Tensor]) -> Callable[[list[Dense]], Tensor]:
    def loss(batch: list[Dense]) -> Tensor:
        return torch.stack([per_token(of)[of.kept].mean() for of in batch if of.kept.any()]).mean()

    return loss


def with_epo(batch: list[Dense]) -> Tensor:
    """The surrogate's token mean, and EPO's term: the mean over an episode's kept turns, then over episodes."""
    episodes = []
    for of in batch:
        turns = []
        for entropies, low, high, kept in zip(
            of.turns(of.entropies),
            of.turns(of.stream("entropy_low")),
            of.turns(of.stream("entropy_high")),
            of.turns(of.kept),
            strict=True,
        ):
            mean = entropies.mean()
            distance = (low[0] - mean).clamp(min=0) + (mean - high[0]).clamp(min=0)
            if kept.all():
                turns.append(mean - EPO["beta"] * EPO["alpha"] * distance)
        if turns:
            episodes.append(torch.stack(turns).mean())
    return token_mean(token_clip)(batch) - EPO["coefficient"] * torch.stack(episodes).mean()


# What the actor is given


def clip_kl_and_bonus() -> Any:
    from megatron_empg.algorithms.algorithm import PolicyLoss
    from megatron_empg.algorithms.entropy_bonus import EntropyBonus
    from megatron_empg.algorithms.kl import KlSection
    from megatron_empg.algorithms.policy_loss import TokenClip

    terms = [KlSection(coefficient=KL).term(), EntropyBonus(coefficient=BONUS).make().term()]
    return PolicyLoss(TokenClip(0.2, 0.28), terms)


def clip_by_sequence() -> Any:
    from megatron_empg.algorithms.algorithm import PolicyLoss
    from megatron_empg.algorithms.sequence_clip import SequenceClip

    return PolicyLoss(SequenceClip(*SEQUENCE_CLIP), [])


def clip_and_epo() -> Any:
    from megatron_empg.algorithms.algorithm import PolicyLoss
    from megatron_empg.algorithms.epo import Epo
    from megatron_empg.algorithms.policy_loss import TokenClip

    return PolicyLoss(TokenClip(0.2, 0.28), [Epo(**EPO).make().term()])


def as_they_are(samples: list[Any]) -> list[Any]:
    return samples


def weighed_by_sample(samples: list[Any]) -> list[Any]:
    """Every sample counts the same: a mean over samples of their kept tokens' means."""
    own = [sample.num_own_tokens for sample in samples]
    kept = [sample.streams.mean_weights != 0 for sample in samples]
    counting = sum(bool(mask.any()) for mask in kept)
    weighed = []
    for sample, mask in zip(samples, kept, strict=True):
        weight = sum(own) / (counting * max(int(mask.sum()), 1))
        weighed.append(with_streams(sample, mean_weights=weight * mask.float()))
    return weighed


def masked(samples: list[Any]) -> list[Any]:
    """Loss weights around 1, some 0; the first turn of every third sample is masked, and one sample whole."""
    generator = torch.Generator().manual_seed(8)
    kept = []
    for number, sample in enumerate(samples):
        mask = torch.ones(sample.num_own_tokens)
        if number % 3 == 0:
            mask[: sample.turn_lengths[0]] = 0
        kept.append(mask if number != 4 else torch.zeros_like(mask))
    scale = sum(len(mask) for mask in kept) / float(sum(mask.sum() for mask in kept))
    made = []
    for sample, mask in zip(samples, kept, strict=True):
        weights = 2 * torch.rand(len(mask), generator=generator)
        weights[weights > 1.8] = 0
        made.append(with_streams(sample, loss_weights=weights, mean_weights=scale * mask))
    return made


def masked_by_sample(samples: list[Any]) -> list[Any]:
    return weighed_by_sample(masked(samples))


def one_advantage(samples: list[Any]) -> list[Any]:
    """An advantage a sample, as GSPO has it; with ratios beyond both clips."""
    made = []
    for number, sample in enumerate(samples):
        advantage = sample.streams.advantages[0]
        old_logprobs = sample.streams.old_logprobs - (0.15 if number % 2 else 0.05)
        made.append(
            with_streams(sample, advantages=advantage.repeat(sample.num_own_tokens), old_logprobs=old_logprobs)
        )
    return weighed_by_sample(made)


def one_advantage_by_turn(samples: list[Any]) -> list[Any]:
    made = []
    for given, sample in zip(samples, one_advantage(samples), strict=True):
        lengths = torch.tensor(sample.turn_lengths)
        by_turn = given.streams.advantages[: len(lengths)]
        made.append(with_streams(sample, advantages=by_turn.repeat_interleave(lengths)))
    return made


def masked_advantage_by_turn(samples: list[Any]) -> list[Any]:
    """With ratios beyond both clips in turns that are masked, too."""
    return one_advantage_by_turn(masked(samples))


def banded(samples: list[Any], turn_entropies: Tensor) -> list[Any]:
    """What EPO's regularizer gives with a band that a third of the turns is below, and a third above."""
    from megatron_empg.algorithms.epo import Epo
    from megatron_empg.rollout.service.experience import experience_of

    ordered = turn_entropies.sort().values
    third = len(ordered) // 3
    history = float(ordered.mean())
    low, high = (float(ordered[i : i + 2].mean()) for i in (third, 2 * third))
    experience = experience_of(
        samples,
        torch.arange(len(samples)),
        rewards=torch.zeros(len(samples)),
        groups=torch.arange(len(samples)),
        rollout_logprobs=torch.cat([sample.streams.old_logprobs for sample in samples]),
    )
    regularizer = Epo(**EPO, band_low=low / history, band_high=high / history).make()
    for _ in range(2):  # the history is that of the batches before
        regularizer.begin(experience, torch.full_like(turn_entropies, history))
    kept = torch.cat([sample.streams.mean_weights != 0 for sample in samples])
    pieces = regularizer.streams(experience, kept).split([sample.num_own_tokens for sample in samples])
    return [with_streams(sample, **piece.present()) for sample, piece in zip(samples, pieces, strict=True)]


LOSSES = [
    Loss("token mean", clip_kl_and_bonus, as_they_are, token_mean(all_terms)),
    Loss("sequence mean", clip_kl_and_bonus, weighed_by_sample, sequence_mean(all_terms)),
    Loss("token mean, masked", clip_kl_and_bonus, masked, token_mean(all_terms)),
    Loss("sequence mean, masked", clip_kl_and_bonus, masked_by_sample, sequence_mean(all_terms)),
    Loss("sequence clip", clip_by_sequence, one_advantage, sequence_mean(one_ratio)),
    Loss("sequence clip by turn", clip_by_sequence, one_advantage_by_turn, sequence_mean(ratio_of_each_token)),
    Loss("sequence clip, masked", clip_by_sequence, masked_advantage_by_turn, sequence_mean(ratio_of_each_token)),
    Loss("epo", clip_and_epo, as_they_are, with_epo),
    Loss("epo, masked", clip_and_epo, masked, with_epo),
]


# Both sides


@dataclass(frozen=True)
class Trained:
    """What came of one update."""

    loss: float
    grad_norm: float
    gradient: dict[str, Tensor]
    """By Hugging Face's names."""
    means: dict[str, float] = dataclasses.field(default_factory=dict)


def updates(folder: Path, layout: dict[str, Any]) -> dict[str, Trained]:
    """An update by each loss, none of which moves the weights."""
    actor = fresh_actor(folder, layout, lr=0.0, clip_grad=1e9)
    batches = torch.load(folder / "losses.pt", weights_only=False)
    trained = {}
    for loss in LOSSES:
        report = actor.update(batches[loss.name], loss.make(), temperature=TEMPERATURE)
        trained[loss.name] = Trained(report.loss, report.grad_norm, gradient_of(actor), report.means)
    return trained


def update_few_own_tokens(folder: Path, layout: dict[str, Any], *, samples: int, model: str = "model") -> Trained:
    """An update by a loss that takes means over samples and turns, on one sample or on both of these.

    The first has own tokens at its start alone, hence on one of two context-parallel ranks. The second, a
    microbatch of its own, has none at all.
    """
    from megatron_empg.algorithms.algorithm import PolicyLoss
    from megatron_empg.algorithms.epo import Epo
    from megatron_empg.algorithms.sample import Sample, TokenStreams
    from megatron_empg.algorithms.sequence_clip import SequenceClip

    drawn = sequences([40])[0]
    streams = TokenStreams(
        old_logprobs=torch.tensor([-6.0, -5.5, -5.0]),
        advantages=torch.ones(3),
        loss_weights=torch.ones(3),
        mean_weights=torch.ones(3),
        entropy_weights=torch.full((3,), 0.2),
        entropy_low=torch.tensor([5.7, 5.7, 0.0]),  # of a turn of two tokens and one of one
        entropy_high=torch.tensor([5.8, 5.8, 0.1]),
    )
    some = Sample(drawn.tokens, torch.tensor([[2, 4], [4, 5]]), streams)
    none = Sample(drawn.tokens, torch.empty(0, 2, dtype=torch.long), streams.map(lambda values: values[:0]))
    actor = fresh_actor(folder, layout, model=model, budget=40 // layout.get("context", 1), lr=0.0, clip_grad=1e9)
    loss = PolicyLoss(SequenceClip(0.2, 0.28), [Epo(**EPO).make().term()])
    report = actor.update([some, none][:samples], loss, temperature=TEMPERATURE)
    return Trained(report.loss, report.grad_norm, gradient_of(actor), report.means)


@torch.no_grad()
def gradient_of(actor: Any) -> dict[str, Tensor]:
    """The last update's whole gradient under Hugging Face names, where it was not clipped; collective."""
    parameters = [parameter for chunk in actor.model for parameter in chunk.parameters()]
    weights = [parameter.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.copy_(parameter.main_grad)
    gradient = weights_of(actor)
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.copy_(weight)
    return gradient


def dense(model: Any, sample: Any) -> Dense:
    where = sample.predictors()
    logp = (model(sample.tokens[None]).logits[0] / TEMPERATURE).log_softmax(-1)[where]
    chosen = logp[torch.arange(len(where)), sample.tokens[where + 1]]
    return Dense(sample, chosen, -(logp.exp() * logp).sum(-1))


def assert_equal(actual: Trained, expected: Trained, tolerance: float = 1e-5) -> None:
    """The loss, its gradient's norm, and the whole gradient by the norm of the difference."""
    assert actual.loss == pytest.approx(expected.loss, rel=tolerance)
    assert actual.grad_norm == pytest.approx(expected.grad_norm, rel=tolerance)
    assert actual.gradient.keys() == expected.gradient.keys()
    squares = 0.0
    for name, part in expected.gradient.items():
        squares += float((actual.gradient[name].double() - part.double()).square().sum())
    assert squares**0.5 <= tolerance * expected.grad_norm


def prepare(folder: Path, model: Any, samples: list[Any]) -> dict[str, Trained]:
    """Write what `updates` reads, and do the same by the equations. ``model``: float64, Hugging Face's."""
    said = [dense(model, sample) for sample in samples]
    with torch.no_grad():
        turn_entropies = torch.stack([turn.mean() for of in said for turn in of.turns(of.entropies)])
    names, parameters = zip(*model.named_parameters(), strict=True)
    batches, expected = {}, {}
    for loss in LOSSES:
        batch = loss.prepare(samples)
        batch = banded(batch, turn_entropies) if loss.equation is with_epo else batch
        value = loss.equation(
            [dataclasses.replace(of, sample=sample) for of, sample in zip(said, batch, strict=True)]
        )
        gradient = torch.autograd.grad(value, parameters, retain_graph=True)
        norm = sum(float(part.square().sum()) for part in gradient) ** 0.5
        batches[loss.name] = batch
        expected[loss.name] = Trained(value.item(), norm, dict(zip(names, gradient, strict=True)))
    torch.save(batches, folder / "losses.pt")
    return expected
