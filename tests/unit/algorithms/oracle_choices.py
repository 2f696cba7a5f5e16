"""Choices of algorithms and parts, each with its plain loop in oracles.py."""

from collections.abc import Callable
from dataclasses import replace

from megatron_empg.algorithms.aem import Aem
from megatron_empg.algorithms.dapo import Dapo, OverlongSection
from megatron_empg.algorithms.empg import Empg
from megatron_empg.algorithms.gigpo import Gigpo
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.gspo import Gspo
from megatron_empg.algorithms.icepop import IcePop
from megatron_empg.algorithms.igpo import Igpo
from megatron_empg.algorithms.no_part import NoCorrection
from megatron_empg.algorithms.reinforce_pp import ReinforcePP
from megatron_empg.algorithms.rloo import Rloo
from megatron_empg.algorithms.sampo import Sampo
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.algorithms.sequence_rejection import SequenceRejection
from megatron_empg.algorithms.truncated_sampling import Mis, Tis
from tests.unit.algorithms import oracles
from tests.unit.algorithms.oracles import Batch, ByTurn, on_turns
from tests.unit.algorithms.played import (
    Played,
    gold_logprobs,
)

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
            reverse=section.reverse,
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
_add_empg("empg_reversed", Empg(reverse=True, k=3.0, k_f=2.0))
_add_empg("empg_reversed_quantile_token", Empg(reverse=True, normalize="quantile", weights="token"))
_add_aem("aem_batch", Aem())
_add_aem("aem_question", Aem(set="question", strength=2.0))
_add_aem("aem_trajectory", Aem(set="trajectory", strength=0.5))


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
