"""Loss and gradient of an optimizer step equal plain loops, for policies that are tables of logits."""

import itertools
import json
import math
import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_empg.algorithms.algorithm import Algorithm
from megatron_empg.algorithms.base import Credit, Scores
from megatron_empg.algorithms.dapo import Dapo
from megatron_empg.algorithms.entropy_bonus import EntropyBonus
from megatron_empg.algorithms.epo import PRESETS, Epo
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.gspo import Gspo
from megatron_empg.algorithms.kl import KlSection
from megatron_empg.algorithms.masks import MasksSection
from megatron_empg.algorithms.no_part import NoRegularizer
from megatron_empg.algorithms.sample import TokenStreams
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.algorithms.segments import Segments
from tests.unit.algorithms import oracles
from tests.unit.algorithms.oracle_choices import ALGORITHMS, CORRECTIONS, MODULATIONS
from tests.unit.algorithms.oracles import Batch, ByTurn, episodes_of, flat
from tests.unit.algorithms.played import CARRIED, Played, answers, assert_equal, float64, random_batch, segments_of

# The regularizer

EPO = {preset: Epo(preset=preset) for preset in PRESETS} | {
    "distance by place, with phases": Epo(
        form="distance", history="turn", phase_weights=True, beta=0.5, alpha=3.0
    ),
    "wide and strong": Epo(form="constant", band_low=0.2, band_high=3.0, coefficient=0.1, alpha=1.5),
}


def epo_loop(
    section: Epo, part: Batch, past: list[Batch], progress: float, left_out: list[bool]
) -> tuple[float, list[float]]:
    """EPO's term over the kept turns of a part of a batch, and its slope at each own token's entropy."""
    given = section.settings
    bands = oracles.bands(part, past, low=given.band_low, high=given.band_high, by_place=given.history == "turn")
    beta = given.beta * (oracles.phase_weight(progress) if given.phase_weights else 1.0)
    form = {"alpha": given.alpha, "distance": given.form == "distance"}
    kept, place = [], 0
    for episode in part:
        of_turns = []
        for turn in episode.turns:
            of_turns.append(not left_out[place])
            place += turn.tokens
        kept.append(of_turns)
    episodes = sum(any(of_turns) for of_turns in kept)
    value, slopes = 0.0, []
    for episode, of_turns, kept_turns in zip(part, bands, kept, strict=True):
        for turn, band, keep in zip(episode.turns, of_turns, kept_turns, strict=True):
            share = given.coefficient / (episodes * sum(kept_turns)) if keep else 0.0
            if keep:
                value -= share * (turn.entropy - beta * oracles.penalty(turn.entropy, band, **form))
            slope = -share * (1 - beta * oracles.penalty_slope(turn.entropy, band, **form)) / turn.tokens
            slopes.extend([slope] * turn.tokens)
    return value, slopes


@pytest.mark.parametrize("name", EPO)
def test_epo_equals_the_loop_over_the_batches_of_a_run(name: str) -> None:
    section = EPO[name]
    for first_seed in range(0, 50, 5):
        regularizer, past = section.make(), []
        for seed in range(first_seed, first_seed + 5):
            played, chance = random_batch(seed), random.Random(seed)
            metrics = regularizer.begin(played.experience, played.experience.turn_means(played.scores.entropies))
            assert all(math.isfinite(value) for value in metrics.values())
            chosen = chance.sample(range(len(played.lists)), chance.randint(1, len(played.lists)))
            part = played.experience.select(chosen)
            moved = [2.5 * chance.random() for _ in range(int(part.turn_lengths.sum()))]
            now = episodes_of(part, Scores(torch.zeros(len(moved)), float64(moved)))
            masked = part.cut.repeat_interleave(part.turn_lengths)
            value, slopes = epo_loop(section, now, past, part.progress, masked.tolist())

            entropies = float64(moved).requires_grad_()
            streams = regularizer.streams(part, ~masked)
            term = regularizer.term()
            assert term is not None
            tokens, statistics = term(torch.zeros(len(moved)), entropies, streams, segments_of(part.samples))
            total = tokens.mean()
            total.backward()
            assert_equal(
                total[None].detach(), [value], rtol=CARRIED, atol=CARRIED * abs(section.settings.coefficient)
            )
            assert entropies.grad is not None
            assert_equal(entropies.grad, slopes, rtol=CARRIED, atol=1e-12)
            assert tuple(statistics) == tuple(term.statistics)

            past.append(played.lists)
            state = json.loads(json.dumps(regularizer.state_dict()))
            regularizer = section.make()
            regularizer.load_state_dict(state)


# The loss and its gradient, by a policy that is a table of logits

VOCABULARY = 5


@dataclass(frozen=True)
class Tables:
    """For each own token of a batch the logits of three policies, and the token that was drawn."""

    drawn: list[int]
    old: list[list[float]]
    new: list[list[float]]
    reference: list[list[float]]


def log_softmax(logits: list[float]) -> list[float]:
    total = math.log(math.fsum(math.exp(value) for value in logits))
    return [value - total for value in logits]


def entropy_of(logprobs: list[float]) -> float:
    return -math.fsum(math.exp(value) * value for value in logprobs)


def chosen_logprobs(tables: Tables, logits: list[list[float]]) -> list[float]:
    return [log_softmax(row)[token] for row, token in zip(logits, tables.drawn, strict=True)]


def entropies_of(logits: list[list[float]]) -> list[float]:
    return [entropy_of(log_softmax(row)) for row in logits]


def played_by_tables(seed: int, chance: random.Random, moved: float) -> tuple[Played, Tables]:
    """A batch as the old table played and scored it; engine, current policy and reference differ from that."""
    batch = random_batch(seed).experience
    count = int(batch.turn_lengths.sum())
    old = [[chance.gauss(0, 1.5) for _ in range(VOCABULARY)] for _ in range(count)]
    new = [[value + chance.gauss(0, moved) for value in row] for row in old]
    reference = [[value + chance.gauss(0, 0.5) for value in row] for row in old]
    tables = Tables([chance.randrange(VOCABULARY) for _ in range(count)], old, new, reference)
    logprobs = chosen_logprobs(tables, old)
    rollout = [value + chance.gauss(0, 0.4) for value in logprobs]
    scores = Scores(float64(logprobs), float64(entropies_of(old)))
    return Played(replace(batch, rollout_logprobs=float64(rollout)), scores), tables


def own_tokens(batch: Batch, chosen: list[int]) -> list[int]:
    """The places of the chosen episodes' own tokens in the batch."""
    found = []
    for number in chosen:
        first = sum(episode.tokens for episode in batch[:number])
        found.extend(range(first, first + batch[number].tokens))
    return found


@dataclass(frozen=True)
class Step:
    """An optimizer step on some of a batch's episodes, as loops see it."""

    section: AlgorithmSection
    tables: Tables
    played: Played
    past: list[Batch]
    """The batches before."""
    chosen: list[int]
    turn_advantages: ByTurn
    """Of all the batch, as the next two."""
    weights: list[float]
    kept: list[bool]

    @property
    def part(self) -> Batch:
        return [self.played.lists[number] for number in self.chosen]

    @property
    def own(self) -> list[int]:
        return own_tokens(self.played.lists, self.chosen)

    @property
    def sequence_lengths(self) -> list[int]:
        lengths = []
        for episode in self.part:
            lengths.extend(len(sequence) for sequence in oracles.log_ratios(episode))
        return lengths

    @property
    def advantages(self) -> list[float]:
        """Of each own token."""
        found = []
        for number in self.chosen:
            for turn, advantage in zip(self.played.lists[number].turns, self.turn_advantages[number], strict=True):
                found.extend([advantage] * turn.tokens)
        return found

    @property
    def shares(self) -> list[float]:
        """What each own token counts in the mean: over kept ones, or over sequences of their kept ones' means."""
        kept = [self.kept[token] for token in self.own]
        if self.section.mean == "token":
            return [keep / max(sum(kept), 1) for keep in kept]
        sequences, place = [], 0
        for length in self.sequence_lengths:
            sequences.append(kept[place : place + length])
            place += length
        some = sum(any(sequence) for sequence in sequences)
        return flat(
            [[keep / (some * sum(sequence)) if keep else 0.0 for keep in sequence] for sequence in sequences]
        )

    @property
    def new_rows(self) -> list[list[float]]:
        """The current policy's log-probs of the whole vocabulary, at each own token."""
        return [log_softmax(self.tables.new[token]) for token in self.own]

    def drawn(self, rows: list[list[float]]) -> list[float]:
        """The log-probs of the tokens that were drawn."""
        return [row[self.tables.drawn[token]] for row, token in zip(rows, self.own, strict=True)]

    @property
    def ratios(self) -> list[float]:
        """PPO's at each own token, or that of its sequence's kept tokens (GSPO, eq. 7)."""
        new, old = self.drawn(self.new_rows), flat([t.logprobs for e in self.part for t in e.turns])
        if not by_sequence(self.section):
            return [math.exp(now - was) for now, was in zip(new, old, strict=True)]
        found, place = [], 0
        for length in self.sequence_lengths:
            kept = [token for token in range(place, place + length) if self.kept[self.own[token]]]
            ratio = oracles.sequence_ratio([new[t] for t in kept], [old[t] for t in kept]) if kept else 1.0
            found.extend([ratio] * length)
            place += length
        return found


def by_sequence(section: AlgorithmSection) -> bool:
    return section.name in ("gspo", "sampo")


def loss_loop(step: Step) -> tuple[float, list[list[float]]]:
    """The loss of a step, and its gradient at each of its logits."""
    terms = [surrogate_and_kl(step), entropy_term(step)]
    value = math.fsum(term[0] for term in terms)
    gradient = []
    for place, row in enumerate(step.new_rows):
        by_logprob = math.fsum(term[1][place] for term in terms)
        by_entropy = math.fsum(term[2][place] for term in terms)
        gradient.append(logit_gradient(row, step.tables.drawn[step.own[place]], by_logprob, by_entropy))
    return value, gradient


Term = tuple[float, list[float], list[float]]
"""A value, and its slopes at each own token's log-prob and entropy."""


def surrogate_and_kl(step: Step) -> Term:
    """Decoupled PPO with a KL: sum of share·(w·L + coefficient·KL).

    d ratio / d log-prob = ratio, for a token's own ratio and for GSPO-token's (eq. 14) alike.
    """
    section, value, slopes = step.section, 0.0, []
    new, old = step.drawn(step.new_rows), flat([t.logprobs for e in step.part for t in e.turns])
    reference = step.drawn([log_softmax(step.tables.reference[token]) for token in step.own])
    given = zip(step.own, step.shares, step.ratios, step.advantages, strict=True)
    for place, (token, share, ratio, advantage) in enumerate(given):
        surrogate = oracles.clipped(ratio, advantage, low=section.clip_low, high=section.clip_high)
        held = oracles.kl_term(
            new[place],
            old[place],
            reference[place],
            coefficient=section.kl.coefficient,
            estimator=section.kl.estimator,
        )
        weight = step.weights[token]
        value += share * (weight * surrogate.value + held.value)
        slopes.append(share * (weight * surrogate.by_logprob + held.by_logprob))
    return value, slopes, [0.0] * len(slopes)


def entropy_term(step: Step) -> Term:
    """The entropy bonus, or EPO's term, or nothing."""
    regularizer, none = step.section.regularizer, [0.0] * len(step.own)
    entropies = [entropy_of(row) for row in step.new_rows]
    if isinstance(regularizer, EntropyBonus):
        slopes = [-regularizer.coefficient * share for share in step.shares]
        return math.fsum(h * slope for h, slope in zip(entropies, slopes, strict=True)), none, slopes
    if not isinstance(regularizer, Epo):
        return 0.0, none, none
    now, place = [], 0
    for episode in step.part:
        turns = []
        for turn in episode.turns:
            turns.append(replace(turn, entropies=entropies[place : place + turn.tokens]))
            place += turn.tokens
        now.append(replace(episode, turns=turns))
    left_out = [not step.kept[token] for token in step.own]
    value, slopes = epo_loop(regularizer, now, step.past, step.played.experience.progress, left_out)
    return value, none, slopes


def logit_gradient(row: list[float], drawn: int, by_logprob: float, by_entropy: float) -> list[float]:
    """d log p(drawn) / dz_j = [j = drawn] - p_j, and dH / dz_j = -p_j·(log p_j + H)."""
    entropy, gradient = entropy_of(row), []
    for token, logprob in enumerate(row):
        probability = math.exp(logprob)
        of_logprob = (token == drawn) - probability
        of_entropy = -probability * (logprob + entropy)
        gradient.append(by_logprob * of_logprob + by_entropy * of_entropy)
    return gradient


SURROGATES = {
    name: ALGORITHMS[name] for name in ("grpo", "dapo", "gspo", "sampo", "reinforce_pp_turns", "igpo")
} | {
    "grpo by sequences": (Grpo(loss_mean="sequence", clip_low=0.1, clip_high=1.0), ALGORITHMS["grpo"][1]),
    "gspo by tokens": (Gspo(loss_mean="token", clip_low=0.1), ALGORITHMS["gspo"][1]),
}
KLS = {
    "none": KlSection(),
    "k1": KlSection(coefficient=0.1, estimator="k1"),
    "k2": KlSection(coefficient=0.1, estimator="k2"),
    "k3": KlSection(coefficient=0.3),
}
REGULARIZERS = {
    "none": NoRegularizer(),
    "entropy": EntropyBonus(coefficient=0.02),
    "epo": Epo(coefficient=0.05),
    "epo_constant": Epo(preset="released", coefficient=0.05),
}


def cases() -> list[Any]:
    """All of them; slow are those whose three choices meet by twos in others, as terms of a sum need no more."""
    found = []
    places = [list(kinds) for kinds in (SURROGATES, KLS, REGULARIZERS)]
    for case in itertools.product(SURROGATES, KLS, REGULARIZERS):
        diagonal = sum(kinds.index(choice) for kinds, choice in zip(places, case, strict=True)) % len(KLS) == 0
        needed = diagonal or "none" in case
        found.append(pytest.param(*case, id="-".join(case), marks=() if needed else pytest.mark.slow))
    return found


@pytest.mark.parametrize(("name", "kl", "regularizer"), cases())
def test_loss_and_gradient_equal_the_loop(name: str, kl: str, regularizer: str) -> None:
    plain, loop = SURROGATES[name]
    modulation, modulate = MODULATIONS["empg_minmax_token"]
    weigher, weigh = CORRECTIONS["icepop"]
    section = plain.model_copy(
        update={
            "modulation": modulation,
            "correction": weigher,
            "kl": KLS[kl],
            "regularizer": REGULARIZERS[regularizer],
            "masks": MasksSection(cut_turns=True),
        }
    )
    for seed in (3, 5, 6):  # whose chosen episodes have masked tokens, and with 5 a policy far from the old one
        chance = random.Random(seed)
        algorithm, past = Algorithm(section), []
        for batch_seed in (seed, seed + 100):
            played, tables = played_by_tables(batch_seed, chance, drift(section, seed))
            credit = credited(algorithm, played, tables)
            past.append(played.lists)
        step = Step(
            section=section,
            tables=tables,
            played=played,
            past=past[:-1],
            chosen=chance.sample(range(len(played.lists)), chance.randint(1, len(played.lists))),
            turn_advantages=by_turn(played.lists, modulate(played.lists, loop(played)).advantages),
            weights=weigh(played.lists),
            kept=[not turn.cut for e in played.lists for turn in e.turns for _ in turn.logprobs],
        )
        value, gradient = loss_loop(step)
        scale = max(abs(entry) for entry in flat(gradient))
        # EPO's weights and bands are carried as float32 too.
        tightest = CARRIED if isinstance(section.regularizer, Epo) else 1e-9
        for exact, tolerance in ((False, CARRIED), (True, tightest)):
            found, found_gradient = loss_by_autograd(algorithm, step, credit, exact=exact)
            assert_equal(found[None], [value], rtol=tolerance, atol=tolerance)
            assert_equal(found_gradient.flatten(), flat(gradient), rtol=tolerance, atol=tolerance * scale)


def drift(section: AlgorithmSection, seed: int) -> float:
    """How far the policy has moved: so that clips are at work, and in some batches far beyond them."""
    near, far = (0.004, 0.4) if by_sequence(section) else (0.3, 1.5)
    return far if seed % 3 == 2 else near


def by_turn(batch: Batch, values: list[float]) -> ByTurn:
    """Numbers of turns laid end to end, as nested lists."""
    found, place = [], 0
    for episode in batch:
        found.append(values[place : place + len(episode.turns)])
        place += len(episode.turns)
    return found


def credited(algorithm: Algorithm, played: Played, tables: Tables) -> Credit:
    """The credit of a batch, with the reference's log-probs from its table."""
    reference = Scores(float64(chosen_logprobs(tables, tables.reference)), torch.zeros(len(tables.drawn)))
    probes = []
    for probe in algorithm.probes(played.experience):
        probes.append(reference if probe.policy == "reference" else answers([probe])[0])
    return algorithm.credit(played.experience, played.scores, probes)


def loss_by_autograd(algorithm: Algorithm, step: Step, credit: Credit, *, exact: bool) -> tuple[Tensor, Tensor]:
    """What the actor does with a step's samples: the mean over own tokens, differentiated.

    ``exact``: with the loops' own advantages and weights, in float64.
    """
    samples = algorithm.samples(step.played.experience, step.played.scores, credit, step.chosen)
    streams = TokenStreams.concatenated([sample.streams for sample in samples])
    if exact:
        streams = replace(
            streams,
            advantages=float64(step.advantages),
            loss_weights=float64([step.weights[token] for token in step.own]),
            mean_weights=float64([share * len(step.own) for share in step.shares]),
        )
    logits = torch.tensor([step.tables.new[token] for token in step.own], dtype=torch.float64, requires_grad=True)
    drawn = torch.tensor([step.tables.drawn[token] for token in step.own])
    rows = logits.log_softmax(-1)
    logprobs = rows.gather(1, drawn[:, None])[:, 0]
    entropies = -(rows.exp() * rows).sum(-1)
    loss = algorithm.loss()
    tokens, statistics = loss(logprobs, entropies, streams, segments_of(samples))
    assert sorted(statistics) == sorted(loss.statistics)
    # However samples are spread over microbatches, a token's loss is the same.
    lengths = [sample.num_own_tokens for sample in samples]
    pieces = zip(samples, logprobs.split(lengths), entropies.split(lengths), streams.split(lengths), strict=True)
    apart = [loss(of_logprobs, h, piece, segments_of([sample]))[0] for sample, of_logprobs, h, piece in pieces]
    torch.testing.assert_close(torch.cat(apart), tokens, rtol=1e-12, atol=1e-15)
    tokens.mean().backward()
    assert logits.grad is not None
    return tokens.mean().detach(), logits.grad


def test_a_dual_clip_equals_the_loop() -> None:
    term = Dapo(dual_clip=3.0).surrogate()
    for seed in range(50):
        chance = random.Random(seed)
        old = [-3 * chance.random() for _ in range(20)]
        new = [value + chance.gauss(0, 1.5) for value in old]
        advantages = [chance.gauss(0, 1) for _ in range(20)]
        logprobs = float64(new).requires_grad_()
        streams = TokenStreams(old_logprobs=float64(old), advantages=float64(advantages))
        one = torch.zeros(20, dtype=torch.long)
        tokens, _ = term(logprobs, torch.zeros(20), streams, Segments(one, one, 1, 1))
        tokens.sum().backward()
        expected = []
        for now, was, advantage in zip(new, old, advantages, strict=True):
            expected.append(oracles.clipped(math.exp(now - was), advantage, low=0.2, high=0.28, dual=3.0))
        assert_equal(tokens.detach(), [slopes.value for slopes in expected])
        assert logprobs.grad is not None
        assert_equal(logprobs.grad, [slopes.by_logprob for slopes in expected])
