"""What every algorithm and part credits equals its plain loop in oracles.py, on random and degenerate batches."""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from megatron_empg.algorithms.aem import Aem
from megatron_empg.algorithms.algorithm import Algorithm
from megatron_empg.algorithms.dapo import Dapo, OverlongSection
from megatron_empg.algorithms.empg import Empg
from megatron_empg.algorithms.gigpo import Gigpo
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.gspo import Gspo
from megatron_empg.algorithms.icepop import IcePop
from megatron_empg.algorithms.igpo import Igpo
from megatron_empg.algorithms.kl import KlSection
from megatron_empg.algorithms.masks import MasksSection
from megatron_empg.algorithms.no_part import NoCorrection, NoModulation
from megatron_empg.algorithms.reinforce_pp import ReinforcePP
from megatron_empg.algorithms.rloo import Rloo
from megatron_empg.algorithms.sampo import Sampo
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.algorithms.sequence_rejection import SequenceRejection
from megatron_empg.algorithms.truncated_sampling import Mis, Tis
from tests.unit.algorithms import oracles
from tests.unit.algorithms.oracles import Batch, ByTurn, flat, on_turns
from tests.unit.algorithms.played import (
    BATCHES,
    SEEDS,
    Played,
    answers,
    assert_equal,
    float64,
    gold_logprobs,
    invented_score,
)

# The advantages


Loop = Callable[[Played], ByTurn]


def grpo_loop(divide_by_std: bool) -> Loop:
    return lambda played: on_turns(played.lists, oracles.grpo(played.lists, divide_by_std=divide_by_std))


def dapo_loop(longest: int, buffer: int, penalty: float) -> Loop:
    def loop(played: Played) -> ByTurn:
        shaped = []
        for episode in played.lists:
            lost = oracles.overlong_shaping(episode.tokens, longest=longest, buffer=buffer, penalty=penalty)
            shaped.append(replace(episode, reward=episode.reward + lost))
        return on_turns(shaped, oracles.grpo(shaped))

    return loop


def gigpo_loop(gamma: float, omega: float, divide_by_std: bool) -> Loop:
    return lambda played: oracles.gigpo(played.lists, gamma=gamma, omega=omega, divide_by_std=divide_by_std)


def igpo_loop(gamma: float, in_nats: bool, divide_by_std: bool) -> Loop:
    return lambda played: oracles.igpo(
        played.lists,
        gold_logprobs(played.experience),
        gamma=gamma,
        in_nats=in_nats,
        divide_by_std=divide_by_std,
    )


def reinforce_pp_loop(gamma: float, weigh_by_tokens: bool) -> Loop:
    return lambda played: oracles.reinforce_pp(played.lists, gamma=gamma, weigh_by_tokens=weigh_by_tokens)


def rloo_loop(played: Played) -> ByTurn:
    return on_turns(played.lists, oracles.rloo(played.lists))


ALGORITHMS: dict[str, tuple[AlgorithmSection, Loop]] = {
    "grpo": (Grpo(), grpo_loop(True)),
    "dr_grpo": (Grpo(normalize_std=False), grpo_loop(False)),
    "dapo": (Dapo(), grpo_loop(True)),
    "dapo_overlong": (
        Dapo(overlong=OverlongSection(buffer=4, max_length=9, penalty=0.7)),
        dapo_loop(longest=9, buffer=4, penalty=0.7),
    ),
    "rloo": (Rloo(), rloo_loop),
    "reinforce_pp": (ReinforcePP(), reinforce_pp_loop(1.0, True)),
    "reinforce_pp_turns": (ReinforcePP(gamma=0.9, weights="turn"), reinforce_pp_loop(0.9, False)),
    "gspo": (Gspo(), grpo_loop(True)),
    "gspo_without_std": (Gspo(normalize_std=False), grpo_loop(False)),
    "gigpo": (Gigpo(), gigpo_loop(0.95, 1.0, True)),
    "gigpo_means": (Gigpo(gamma=0.5, omega=0.3, normalize_std=False), gigpo_loop(0.5, 0.3, False)),
    "gigpo_myopic": (Gigpo(gamma=0.0, omega=2.0), gigpo_loop(0.0, 2.0, True)),
    "sampo": (Sampo(), gigpo_loop(0.95, 1.0, True)),
    "igpo": (Igpo(), igpo_loop(1.0, False, True)),
    "igpo_nats": (Igpo(gain="logprob", gamma=0.8, normalize_std=False), igpo_loop(0.8, True, False)),
}


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

MODULATIONS: dict[str, tuple[Empg | Aem, Callable[[Batch, ByTurn], oracles.Modulation]]] = {}


def _add_empg(name: str, section: Empg) -> None:
    MODULATIONS[name] = (
        section,
        lambda batch, advantages: oracles.empg(
            batch,
            advantages,
            k=section.k,
            k_f=section.k_f,
            zeta=section.zeta,
            center=section.center,
            normalize=section.normalize,
            weigh_by_tokens=section.weights == "token",
        ),
    )


def _add_aem(name: str, section: Aem) -> None:
    MODULATIONS[name] = (
        section,
        lambda batch, advantages: oracles.aem(batch, advantages, strength=section.strength, over=section.set),
    )


_add_empg("empg_minmax_turn", Empg())
_add_empg("empg_minmax_token", Empg(weights="token"))
_add_empg("empg_quantile_turn", Empg(normalize="quantile", k=3.0))
_add_empg("empg_quantile_token", Empg(normalize="quantile", weights="token", k_f=2.0))
_add_empg("empg_rank_turn", Empg(normalize="rank", zeta=0.5))
_add_empg("empg_rank_token", Empg(normalize="rank", weights="token", k=10.0))
_add_empg("empg_not_centred", Empg(center=False, zeta=-0.2))
_add_empg("empg_scaling_alone", Empg(zeta=0.0, center=False, k=3.0))
_add_aem("aem_batch", Aem())
_add_aem("aem_question", Aem(set="question", strength=2.0))
_add_aem("aem_trajectory", Aem(set="trajectory", strength=0.5))


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

CORRECTIONS: dict[
    str, tuple[NoCorrection | Tis | Mis | IcePop | SequenceRejection, Callable[[Batch], list[float]]]
] = {
    "none": (NoCorrection(), lambda batch: [1.0] * sum(episode.tokens for episode in batch)),
    "tis": (Tis(), lambda batch: oracles.tis(batch, cap=2.0, sequence=False)),
    "tis_sequence": (Tis(level="sequence", cap=1.5), lambda batch: oracles.tis(batch, cap=1.5, sequence=True)),
    "mis": (Mis(), lambda batch: oracles.mis(batch, low=0.5, high=2.0, sequence=False)),
    "mis_sequence": (Mis(level="sequence"), lambda batch: oracles.mis(batch, low=0.5, high=2.0, sequence=True)),
    "mis_above_alone": (
        Mis(low=0.0, high=1.2),
        lambda batch: oracles.mis(batch, low=0.0, high=1.2, sequence=False),
    ),
    "icepop": (IcePop(), lambda batch: oracles.mis(batch, low=0.5, high=5.0, sequence=False)),
    "rejection": (
        SequenceRejection(),
        lambda batch: oracles.sequence_rejection(batch, low=0.99, high=1.01, geometric=True),
    ),
    "rejection_product": (
        SequenceRejection(measure="product"),
        lambda batch: oracles.sequence_rejection(batch, low=0.5, high=2.0, geometric=False),
    ),
}


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
