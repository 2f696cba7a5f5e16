"""An algorithm at work: the parts that a recipe chose, put together for the training loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from megatron_empg.algorithms.base import (
    Correction,
    Credit,
    Experience,
    LossTerm,
    Modulation,
    Probe,
    Regularizer,
    Scores,
)
from megatron_empg.algorithms.sample import Sample, TokenStreams
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.algorithms.segments import Segments


class Algorithm:
    """Decides what each turn is trained on, and by which loss.

    Which groups train is asked of the section alone, by the rollout service.

    Every rank holds the whole batch. Call `credit` once for each batch: it adds the batch to what the parts keep
    between batches (EPO's history, EMPG's running statistics). Then `samples` and `loss` may be called any number
    of times; they are about that batch.
    """

    def __init__(self, section: AlgorithmSection) -> None:
        self.section = section
        self.modulation: Modulation | None = section.modulation.make()
        self.regularizer: Regularizer = section.regularizer.make()
        self.correction: Correction = section.correction
        self._last: Credit | None = None

    @property
    def asks_reference(self) -> bool:
        """Whether a probe may be of the run's initial policy."""
        return self.section.asks_reference or self.section.kl.coefficient > 0

    def probes(self, experience: Experience) -> list[Probe]:
        """The samples to be scored beside the batch: those of the advantages first, then those of the KL term."""
        return [*self.section.probes(experience), *self.section.kl.probes(experience)]

    def credit(self, experience: Experience, scores: Scores, probes: list[Scores]) -> Credit:
        """What each turn and token is trained on; ``probes`` are the scores of `probes`, in its order.

        Call it once per batch: it goes on with the histories and running statistics of `state_dict`.
        """
        section = self.section
        references = section.kl.probes(experience)
        own, reference = probes[: len(probes) - len(references)], probes[len(probes) - len(references) :]
        shaped = replace(experience, rewards=section.shaped_rewards(experience))
        advantages = section.advantages(shaped, own)
        entropies = experience.turn_means(scores.entropies)
        turns, modulated = advantages.turns, None
        metrics: dict[str, float] = {}
        if self.modulation is not None:
            modulated = self.modulation.modulate(advantages.turns, entropies, experience)
            turns = modulated.advantages
            metrics |= modulated.metrics
        weighted = self.correction.weigh(scores.logprobs, experience)
        kept = section.masks.kept(experience, advantages)
        metrics |= weighted.metrics | section.masks.metrics(kept) | self.regularizer.begin(experience, entropies)
        self._last = Credit(
            advantages=advantages,
            turns=turns,
            entropies=entropies,
            modulated=modulated,
            loss_weights=weighted.weights,
            kept=kept,
            reference_logprobs=reference[0].logprobs if reference else None,
            metrics=metrics,
        )
        return self._last

    def samples(self, experience: Experience, scores: Scores, credit: Credit, episodes: list[int]) -> list[Sample]:
        """The chosen episodes' samples with everything that the loss reads, for one optimizer step on them.

        Raises ValueError unless ``credit`` is the last one given: the regularizer has gone on from others.
        """
        if credit is not self._last:
            raise ValueError(
                "samples were asked for by a credit that is not the last batch's; credit the batch first"
            )
        part = experience.select(episodes)
        tokens = experience.tokens_of(episodes)
        turns = credit.turns[experience.turns_of(episodes)]
        reference_logprobs = None
        if credit.reference_logprobs is not None:
            reference_logprobs = credit.reference_logprobs[tokens]
        kept = credit.kept[tokens]
        streams = TokenStreams(
            old_logprobs=scores.logprobs[tokens],
            advantages=turns.repeat_interleave(part.turn_lengths).float(),
            loss_weights=credit.loss_weights[tokens].float(),
            mean_weights=mean_weights(part, kept, self.section.mean),
            reference_logprobs=reference_logprobs,
        )
        streams = streams.joined(self.regularizer.streams(part, kept))
        pieces = streams.split(part.sample_lengths.tolist())
        return [replace(sample, streams=piece) for sample, piece in zip(part.samples, pieces, strict=True)]

    def loss(self) -> PolicyLoss:
        """The loss of an optimizer step on the batch that was credited last."""
        terms = [self.section.kl.term(), self.regularizer.term()]
        return PolicyLoss(self.section.surrogate(), [term for term in terms if term is not None])

    def state_dict(self) -> dict[str, Any]:
        """What the parts carry over to the next batch, as JSON for the checkpoint."""
        state = {"regularizer": self.regularizer.state_dict()}
        if self.modulation is not None:
            state["modulation"] = self.modulation.state_dict()
        return {name: part for name, part in state.items() if part}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a `state_dict`. Raises ValueError for a state that is broken, or of other parts."""
        if not isinstance(state, dict):
            raise ValueError(
                f"the checkpoint's algorithm is {state!r}; it must be a dict: take another checkpoint"
            )
        if self.modulation is None:
            known = {"regularizer"}
        else:
            known = {"regularizer", "modulation"}
        if surplus := [name for name in state if name not in known]:
            raise ValueError(
                f"the checkpoint's algorithm holds a state of {surplus}, this one of {sorted(known)} alone: "
                "go on with the parts that the run began with"
            )
        self.regularizer.load_state_dict(state.get("regularizer", {}))
        if self.modulation is not None:
            self.modulation.load_state_dict(state.get("modulation", {}))


def mean_weights(part: Experience, kept: Tensor, mean: str) -> Float[Tensor, "own_tokens"]:
    """Weights by which the mean over all own tokens becomes that over the kept ones, or over samples of their kept
    tokens' means. 0 throughout where nothing is kept."""
    kept = kept.double()
    if mean == "token":
        return (kept * len(kept) / kept.sum().clamp(min=1)).float()
    lengths = part.sample_lengths
    sample_of_token = torch.arange(len(lengths)).repeat_interleave(lengths)
    in_sample = torch.zeros(len(lengths), dtype=torch.float64).index_add(0, sample_of_token, kept)
    samples = in_sample.count_nonzero().clamp(min=1)
    return (kept * len(kept) / (samples * in_sample.clamp(min=1)[sample_of_token])).float()


class PolicyLoss:
    """The loss of each own token: the surrogate plus the terms beside it. The actor takes their mean over tokens.

    A term is multiplied by ``mean_weights``, which are 0 at masked tokens, unless it is `weighted` already.
    """

    def __init__(self, surrogate: LossTerm, terms: list[LossTerm]) -> None:
        self.surrogate, self.terms = surrogate, terms
        self.statistics = tuple(name for term in (surrogate, *terms) for name in term.statistics)

    def __call__(
        self, logprobs: Tensor, entropies: Tensor, streams: TokenStreams, segments: Segments
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert streams.loss_weights is not None
        assert streams.mean_weights is not None
        loss, statistics = self.surrogate(logprobs, entropies, streams, segments)
        loss = loss * streams.loss_weights * streams.mean_weights
        for term in self.terms:
            values, numbers = term(logprobs, entropies, streams, segments)
            loss = loss + (values if term.weighted else values * streams.mean_weights)
            statistics |= numbers
        return loss, statistics
