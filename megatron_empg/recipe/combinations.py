"""What the parts of an algorithm mean together, and with the run around them: what means nothing is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeGuard

from megatron_empg.algorithms.aem import Aem
from megatron_empg.algorithms.dapo import Dapo
from megatron_empg.algorithms.empg import Empg
from megatron_empg.algorithms.entropy_bonus import EntropyBonus
from megatron_empg.algorithms.epo import Epo
from megatron_empg.algorithms.gigpo import Gigpo
from megatron_empg.algorithms.kl import KlSection
from megatron_empg.algorithms.reinforce_pp import ReinforcePP
from megatron_empg.algorithms.sampo import Sampo

if TYPE_CHECKING:
    from megatron_empg.algorithms.section import AlgorithmSection
    from megatron_empg.recipe import Recipe

ONE_TURN = "with environment.max_turns 1"


def check_algorithm(recipe: Recipe) -> None:
    """Raise ValueError with every choice of `algorithm` that the rest of the recipe makes void."""
    faults = [
        *_one_turn(recipe),
        *_bonus(recipe),
        *_reverse(recipe),
        *_control(recipe),
        *_kl(recipe),
        *_overlong(recipe),
    ]
    faults += _lag(recipe)
    if faults:
        raise ValueError("\n  - ".join(faults))


def _one_turn(recipe: Recipe) -> Iterator[str]:
    """What compares or chains turns needs several of them."""
    if recipe.environment.max_turns > 1:
        return
    algorithm, modulation = recipe.algorithm, recipe.algorithm.modulation
    if isinstance(modulation, Empg) and has_bonus(modulation):
        key, value = _bonus_key(modulation)
        yield (
            f"algorithm.modulation.{key} is {value} {ONE_TURN}: the bonus is for a turn that leads to a clearer "
            "next one; set algorithm.modulation.zeta=0, or algorithm.modulation=none"
        )
    if isinstance(modulation, Aem) and modulation.set == "trajectory":
        yield (
            f"algorithm.modulation.set is trajectory {ONE_TURN}: a turn alone in its set is scaled by 1; choose "
            "batch or question, or algorithm.modulation=none"
        )
    if algorithm.tells_turns_apart:
        yield (
            f"algorithm.name is {algorithm.name} {ONE_TURN}: it tells the turns of an episode apart; choose grpo, "
            "gspo or another"
        )
    if isinstance(algorithm, ReinforcePP) and algorithm.gamma < 1:
        yield f"algorithm.gamma is {algorithm.gamma:g} {ONE_TURN}: there is nothing to discount; leave it out"


def has_bonus(modulation: Empg) -> bool:
    """Whether a turn's successor counts."""
    return bool(modulation.zeta or modulation.target_bonus_ratio)


def _bonus_key(modulation: Empg) -> tuple[str, float | None]:
    if modulation.target_bonus_ratio:
        return "target_bonus_ratio", modulation.target_bonus_ratio
    return "zeta", modulation.zeta


def _bonus(recipe: Recipe) -> Iterator[str]:
    modulation = recipe.algorithm.modulation
    if isinstance(modulation, Empg) and not has_bonus(modulation):
        default = Empg.model_fields["k_f"].default
        if modulation.k_f != default:
            yield (
                f"algorithm.modulation.k_f is {modulation.k_f:g} with algorithm.modulation.zeta 0: there is no "
                "bonus for it to shape; leave it out"
            )
    moved = isinstance(modulation, Empg) and (has_bonus(modulation) or modulation.center)
    if recipe.algorithm.masks.bonus_only and not moved and not _has_other_terms(recipe.algorithm):
        yield (
            f"algorithm.masks.bonus_only is true with algorithm.modulation {modulation.name}, which adds no bonus "
            "and does not centre, and with neither a KL nor a regularizer: turns without advantage have no "
            "gradient that a mask could take away; leave it out"
        )


def _reverse(recipe: Recipe) -> Iterator[str]:
    modulation = recipe.algorithm.modulation
    if not isinstance(modulation, Empg) or not modulation.reverse:
        return
    scales = modulation.k or modulation.target_scale_ratio
    if not scales and not has_bonus(modulation):
        yield (
            "algorithm.modulation.reverse is true with algorithm.modulation.k 0 and no bonus: entropies count for "
            "nothing, and there is nothing to reverse; leave it out"
        )


def _has_other_terms(algorithm: AlgorithmSection) -> bool:
    """Whether the loss trains turns without advantage, too."""
    regularizer, coefficient = algorithm.regularizer, algorithm.kl.coefficient
    if isinstance(regularizer, EntropyBonus):
        coefficient = coefficient or regularizer.coefficient
    if isinstance(regularizer, Epo):
        coefficient = coefficient or regularizer.settings.coefficient
    return coefficient != 0


def _control(recipe: Recipe) -> Iterator[str]:
    """With permuted rewards nothing may be learnt: neither of gold answers nor of an episode's length."""
    algorithm = recipe.algorithm
    if not algorithm.shuffle_rewards:
        return
    if algorithm.needs_gold:
        yield (
            f"algorithm.shuffle_rewards is true with algorithm.name {algorithm.name}, which learns from gold "
            "answers beside rewards: that is not a control experiment; choose another algorithm"
        )
    if isinstance(algorithm, Dapo) and algorithm.overlong.buffer:
        yield (
            f"algorithm.shuffle_rewards is true with algorithm.overlong.buffer {algorithm.overlong.buffer}: the "
            "penalty teaches episodes to be short, whatever their rewards; set algorithm.overlong.buffer=0 and "
            "leave overlong.max_length out"
        )
    if _discounts(algorithm):
        yield (
            f"algorithm.shuffle_rewards is true with algorithm.gamma {algorithm.gamma:g}: turns far from their "
            "episode's end earn less, so that lengths teach whatever the rewards; set algorithm.gamma=1"
        )


def _discounts(algorithm: AlgorithmSection) -> TypeGuard[Gigpo | Sampo | ReinforcePP]:
    """Whether a turn's advantage depends on how far its episode's end is."""
    if isinstance(algorithm, Gigpo | Sampo):
        return algorithm.gamma < 1 and algorithm.omega > 0
    return isinstance(algorithm, ReinforcePP) and algorithm.gamma < 1


def _lag(recipe: Recipe) -> Iterator[str]:
    """A stream has no rounds: groups are looked at one by one, and another enters for each that is dropped."""
    algorithm, lag = recipe.algorithm, recipe.rollout.max_lag
    if lag and algorithm.shuffle_rewards:
        yield (
            f"algorithm.shuffle_rewards is true with rollout.max_lag {lag}: rewards are permuted over a whole "
            "batch before any group is dropped, and a stream drops each as it is done; set rollout.max_lag=0"
        )
    if lag and algorithm.asked_by_wanted != 1:
        yield (
            f"algorithm.oversampling is {algorithm.asked_by_wanted:g} with rollout.max_lag {lag}: a stream plays "
            "groups ahead of the trainer by itself; leave it out"
        )


def _kl(recipe: Recipe) -> Iterator[str]:
    kl = recipe.algorithm.kl
    if not kl.coefficient and kl.estimator != KlSection.model_fields["estimator"].default:
        yield (
            f"algorithm.kl.estimator is {kl.estimator} with algorithm.kl.coefficient 0: there is no KL to "
            "estimate; give a coefficient or leave it out"
        )


def _overlong(recipe: Recipe) -> Iterator[str]:
    if not isinstance(recipe.algorithm, Dapo):
        return
    overlong, rollout = recipe.algorithm.overlong, recipe.rollout
    if overlong.max_length is None:
        return
    if not overlong.buffer:
        yield (
            f"algorithm.overlong.max_length is {overlong.max_length} with algorithm.overlong.buffer 0, which "
            "switches the penalty off; give a buffer or leave both out"
        )
        return
    longest = min(rollout.max_episode_tokens, recipe.environment.max_turns * rollout.max_turn_tokens)
    begins = overlong.max_length - overlong.buffer
    if begins >= longest:
        yield (
            f"algorithm.overlong.max_length is {overlong.max_length} with a buffer of {overlong.buffer}: the "
            f"penalty begins after {begins} own tokens, and no episode has more than {longest} (the smaller of "
            "rollout.max_episode_tokens and environment.max_turns x rollout.max_turn_tokens); lower max_length"
        )
