"""What every algorithm and part credits equals its plain loop in oracles.py, on random and degenerate batches."""

import itertools
import math
import random
from dataclasses import replace

import pytest

from megatron_empg.algorithms.algorithm import Algorithm
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.kl import KlSection
from megatron_empg.algorithms.masks import MasksSection
from megatron_empg.algorithms.no_part import NoModulation
from tests.unit.algorithms import oracles
from tests.unit.algorithms.oracle_choices import (
    ALGORITHMS,
    CORRECTIONS,
    MODULATIONS,
)
from tests.unit.algorithms.oracles import flat, on_turns
from tests.unit.algorithms.played import (
    BATCHES,
    SEEDS,
    answers,
    assert_equal,
    float64,
    invented_score,
)

# The advantages


@pytest.mark.parametrize("name", ALGORITHMS)
def test_advantages_equal_the_loop(name: str) -> None:
    section, loop = ALGORITHMS[name]
    for played in BATCHES:
        shaped = replace(played.experience, rewards=section.shaped_rewards(played.experience))
        found = section.advantages(shaped, answers(section.probes(played.experience)))
        assert_equal(found.turns, flat(loop(played)))
        assert len(found.episodes) == len(played.lists)


def test_only_dapo_and_sampo_leave_out_groups_of_equal_rewards() -> None:
    for seed in SEEDS:
        chance = random.Random(seed)
        rewards = [chance.choice([0.0, 1.0, 0.1]) for _ in range(chance.randint(1, 4))]
        for name, (section, _) in ALGORITHMS.items():
            filtered = name.startswith(("dapo", "sampo"))
            expected = oracles.dapo_keeps(rewards) if filtered else True
            assert section.keeps(float64(rewards)) is expected, (name, rewards)


# The modulations


@pytest.mark.parametrize("name", MODULATIONS)
def test_modulation_equals_the_loop(name: str) -> None:
    section, loop = MODULATIONS[name]
    for seed, played in enumerate(BATCHES):
        chance = random.Random(seed)
        advantages = [[chance.gauss(0, 1) for _ in episode.turns] for episode in played.lists]
        entropies = played.experience.turn_means(played.scores.entropies)
        found = section.make().modulate(float64(flat(advantages)), entropies, played.experience)
        expected = loop(played.lists, advantages)
        # H_norm of equal entropies is 0 / (0 + 1e-8): what rounding leaves of the 0 counts up to 1e-8.
        assert_equal(found.h_norm, expected.h_norm, atol=1e-8)
        assert_equal(found.scale, expected.scale, atol=1e-8)
        assert_equal(found.bonus, expected.bonus, atol=1e-8)
        assert_equal(found.advantages, expected.advantages, atol=1e-8)


# The corrections


@pytest.mark.parametrize("name", CORRECTIONS)
def test_correction_equals_the_loop(name: str) -> None:
    section, loop = CORRECTIONS[name]
    seen = set()
    for played in BATCHES:
        weighted = section.weigh(played.scores.logprobs, played.experience)
        expected = loop(played.lists)
        assert_equal(weighted.weights, expected)
        seen |= {weight == 0 for weight in expected}
    assert seen == ({False} if name in ("none", "tis", "tis_sequence") else {True, False})


# Masks


@pytest.mark.parametrize("chosen", list(itertools.product([False, True], repeat=3)))
def test_masks_equal_the_loop(chosen: tuple[bool, bool, bool]) -> None:
    truncated, cut_turns, bonus_only = chosen
    section = MasksSection(truncated=truncated, cut_turns=cut_turns, bonus_only=bonus_only)
    for played in BATCHES:
        advantages = Grpo().advantages(played.experience, [])
        by_turn = on_turns(played.lists, oracles.grpo(played.lists))
        expected = oracles.kept(
            played.lists, by_turn, truncated=truncated, cut_turns=cut_turns, bonus_only=bonus_only
        )
        assert section.kept(played.experience, advantages).tolist() == expected


# The whole credit


PAIRS = list(itertools.product([None, *MODULATIONS], CORRECTIONS))
"""Modulations and corrections; each algorithm meets another pair in each batch."""


@pytest.mark.parametrize("name", ALGORITHMS)
def test_credit_equals_the_loops(name: str) -> None:
    plain, loop = ALGORITHMS[name]
    for number, played in enumerate(BATCHES):
        modulation, correction = PAIRS[(7 * number + 11 * list(ALGORITHMS).index(name)) % len(PAIRS)]
        weigher, weights = CORRECTIONS[correction]
        # Rounding decides whether IGPO's sums that cancel, and rewards with a penalty, are exactly 0.
        masks = {
            "truncated": number % 2 == 0,
            "cut_turns": True,
            "bonus_only": number % 3 == 0 and not name.startswith(("igpo", "dapo_overlong")),
        }
        section = plain.model_copy(
            update={
                "modulation": MODULATIONS[modulation][0] if modulation else NoModulation(),
                "correction": weigher,
                "kl": KlSection(coefficient=0.01),
                "masks": MasksSection(**masks),
            }
        )
        algorithm = Algorithm(section)
        credit = algorithm.credit(played.experience, played.scores, answers(algorithm.probes(played.experience)))

        advantages = loop(played)
        assert_equal(credit.advantages.turns, flat(advantages))
        final = flat(advantages)
        if modulation:
            final = MODULATIONS[modulation][1](played.lists, advantages).advantages
        assert_equal(credit.turns, final, atol=1e-8)
        assert_equal(credit.loss_weights, weights(played.lists))
        assert_equal(credit.entropies, [turn.entropy for episode in played.lists for turn in episode.turns])
        assert credit.reference_logprobs is not None
        reference = [invented_score(sample, "reference").logprobs.tolist() for sample in played.experience.samples]
        assert_equal(credit.reference_logprobs, flat(reference))
        assert credit.kept.tolist() == oracles.kept(played.lists, advantages, **masks)
        assert all(math.isfinite(value) for value in credit.metrics.values())
