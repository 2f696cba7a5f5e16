"""Every algorithm with every modulation, regularizer and correction, with a KL or without: numbers are finite."""

import itertools
import json
import math
import random
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from megatron_empg.algorithms.algorithm import Algorithm
from megatron_empg.algorithms.base import Scores
from megatron_empg.algorithms.registry import AlgorithmKey, Algorithms
from megatron_empg.algorithms.sample import Sample, TokenStreams
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.common.section import choices
from tests.unit.algorithms.played import BATCHES, Played, answers, degenerate_batches, float64, segments_of

KEYS: TypeAdapter[AlgorithmSection] = TypeAdapter(AlgorithmKey)

NAMES = tuple(choices(Algorithms))
MODULATIONS = ("none", "empg", "aem")
REGULARIZERS = ("none", "entropy", "epo")
CORRECTIONS: tuple[Any, ...] = (
    "none",
    "tis",
    "mis",
    "icepop",
    {"name": "sequence_rejection", "low": 0.8, "high": 1.25},
)
KLS = ({}, {"coefficient": 0.01})
MASKS = {"truncated": True, "cut_turns": True}
SEEDS = (5, 33)
"""Of batches with a dozen episodes and rewards that differ."""


VARIANTS: tuple[dict[str, Any], ...] = (
    {"modulation": {"name": "empg", "normalize": "quantile", "weights": "token"}},
    {"modulation": {"name": "empg", "normalize": "rank", "target_scale_ratio": 3.0, "target_bonus_ratio": 0.2}},
    {"modulation": {"name": "aem", "set": "trajectory"}},
    {"modulation": {"name": "aem", "set": "question"}, "loss_mean": "sequence"},
    {"regularizer": {"name": "epo", "preset": "released_alfworld"}, "loss_mean": "token"},
    {"correction": {"name": "tis", "level": "sequence"}, "regularizer": {"name": "epo", "history": "turn"}},
    {"correction": {"name": "mis", "level": "sequence", "low": 0.0, "high": 100.0}, "kl": {"coefficient": 0.1}},
)


def combinations(name: str, modulation: str) -> list[dict[str, Any]]:
    keys = []
    for regularizer, correction, kl in itertools.product(REGULARIZERS, CORRECTIONS, KLS):
        keys.append(
            {
                "name": name,
                "modulation": modulation,
                "regularizer": regularizer,
                "correction": correction,
                "kl": kl,
                "masks": MASKS,
            }
        )
    return keys


def pairs(name: str, modulation: str) -> list[dict[str, Any]]:
    """A sixth of the combinations: any two choices of two parts meet in one of them, for every algorithm."""
    shift = MODULATIONS.index(modulation) + NAMES.index(name)
    chosen = []
    for number, correction in enumerate(CORRECTIONS):
        regularizer = REGULARIZERS[(shift + number) % len(REGULARIZERS)]
        kl = KLS[(shift + number) % len(KLS)]
        chosen.append((regularizer, correction, kl))
    return [
        keys
        for keys in combinations(name, modulation)
        if (keys["regularizer"], keys["correction"], keys["kl"]) in chosen
    ]


@pytest.mark.parametrize("modulation", MODULATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_any_two_choices_train_on_finite_numbers(name: str, modulation: str) -> None:
    for keys in pairs(name, modulation):
        train_on_two_batches(keys)


@pytest.mark.slow
@pytest.mark.parametrize("modulation", MODULATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_combination_trains_on_finite_numbers(name: str, modulation: str) -> None:
    for keys in combinations(name, modulation):
        train_on_two_batches(keys)


@pytest.mark.parametrize("name", NAMES)
def test_any_two_choices_of_parts_are_among_them(name: str) -> None:
    parts = ("modulation", "regularizer", "correction", "kl")
    whole, few = [], []
    for modulation in MODULATIONS:
        whole += combinations(name, modulation)
        few += pairs(name, modulation)
    assert len(few) == len(whole) // 6
    for part, other in itertools.combinations(parts, 2):
        wanted = {(str(keys[part]), str(keys[other])) for keys in whole}
        assert {(str(keys[part]), str(keys[other])) for keys in few} == wanted


@pytest.mark.parametrize("name", NAMES)
def test_other_keys_of_the_parts_train_on_finite_numbers(name: str) -> None:
    for variant in VARIANTS:
        train_on_two_batches({"name": name, **variant})


@pytest.mark.parametrize("name", NAMES)
def test_degenerate_batches_train_on_finite_numbers(name: str) -> None:
    """A gradient may be 0 here."""
    played = degenerate_batches()
    for keys in (*combinations(name, "empg")[::9], *({"name": name, **variant} for variant in VARIANTS[:3])):
        algorithm = Algorithm(KEYS.validate_python(keys))
        for batch in played.values():
            train(algorithm, batch, list(range(len(batch.lists))))


def train_on_two_batches(keys: dict[str, Any]) -> None:
    """A step on half of each; the second has running statistics and histories to draw on, out of a checkpoint."""
    state: dict[str, Any] | None = None
    for seed, first in zip(SEEDS, (0, 1), strict=True):
        algorithm = Algorithm(KEYS.validate_python(keys))
        if state is not None:
            algorithm.load_state_dict(state)
            assert algorithm.state_dict() == state
        played = BATCHES[seed]
        assert train(algorithm, played, list(range(first, len(played.lists), 2))) > 0, keys
        state = json.loads(json.dumps(algorithm.state_dict()))


def train(algorithm: Algorithm, played: Played, part: list[int]) -> float:
    """An optimizer step on some episodes of a batch, as far as the gradient; gives its largest number."""
    credit = algorithm.credit(played.experience, played.scores, answers(algorithm.probes(played.experience)))
    assert credit.turns.isfinite().all()
    assert credit.loss_weights.isfinite().all()
    assert all(math.isfinite(value) for value in credit.metrics.values())
    if not part:
        return 0.0
    samples = algorithm.samples(played.experience, played.scores, credit, part)
    return largest_gradient(algorithm, samples, moved(played, part))


def moved(played: Played, part: list[int]) -> Scores:
    """What the policy says of the part's own tokens after a step or two."""
    own, chance = played.experience.tokens_of(part), random.Random(len(part))
    drift = float64([chance.gauss(0, 0.002) for _ in range(len(own))])
    return Scores(played.scores.logprobs[own] + drift, (played.scores.entropies[own] - drift).clamp(min=0))


def largest_gradient(algorithm: Algorithm, samples: list[Sample], now: Scores) -> float:
    streams = TokenStreams.concatenated([sample.streams for sample in samples])
    logprobs, entropies = now.logprobs.requires_grad_(), now.entropies.requires_grad_()
    loss, statistics = algorithm.loss()(logprobs, entropies, streams, segments_of(samples))
    assert loss.shape == logprobs.shape
    assert all(values.isfinite().all() for values in statistics.values())
    total = loss.mean()
    assert total.isfinite()
    gradients = torch.autograd.grad(total, [logprobs, entropies], allow_unused=True)
    largest = 0.0
    for gradient in gradients:
        if gradient is not None:
            assert gradient.isfinite().all()
            largest = max(largest, gradient.abs().max().item())
    return largest


def test_one_credit_takes_a_batch_up_and_samples_and_losses_are_of_it() -> None:
    """A second credit of a batch is a second batch to the parts that keep a history."""
    keys = {"name": "grpo", "modulation": {"name": "empg", "target_scale_ratio": 3.0}, "regularizer": "epo"}
    algorithm, played = Algorithm(KEYS.validate_python(keys)), BATCHES[SEEDS[0]]
    first = algorithm.credit(played.experience, played.scores, [])
    once = algorithm.state_dict()
    for _ in range(2):  # any number of optimizer steps
        algorithm.samples(played.experience, played.scores, first, [0, 1])
        algorithm.loss()
    assert algorithm.state_dict() == once
    second = algorithm.credit(played.experience, played.scores, [])
    assert algorithm.state_dict()["regularizer"]["batches"] == [2]
    with pytest.raises(ValueError, match="not the last batch's"):
        algorithm.samples(played.experience, played.scores, first, [0])
    assert len(algorithm.samples(played.experience, played.scores, second, [0])) > 0


def test_a_stream_that_two_parts_give_is_an_error() -> None:
    streams = TokenStreams(advantages=torch.ones(2))
    assert set(streams.joined(TokenStreams(entropy_weights=torch.ones(2))).present()) == {
        "advantages",
        "entropy_weights",
    }
    with pytest.raises(ValueError, match=r"\['advantages'\] are given twice"):
        streams.joined(TokenStreams(advantages=torch.zeros(2)))


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ([], "must be a dict"),
        ({"modulation": {"clarity": [1.0, 1.0]}}, r"holds a state of \['modulation'\]"),
        ({"history": {}}, r"holds a state of \['history'\]"),
        ({"regularizer": 3}, "keeps no state, the checkpoint holds 3"),
    ],
)
def test_the_state_of_parts_that_are_not_there_is_refused(state: Any, named: str) -> None:
    algorithm = Algorithm(KEYS.validate_python({"name": "grpo", "modulation": "none"}))
    with pytest.raises(ValueError, match=named):
        algorithm.load_state_dict(state)
    algorithm.load_state_dict({})
    assert algorithm.state_dict() == {}
