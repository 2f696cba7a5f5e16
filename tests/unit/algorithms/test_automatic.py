"""Constants that follow from targets: what they reach, and that a resumed run has the same."""

import json
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from megatron_empg.algorithms.automatic import EmpgTargets, RunningMean
from megatron_empg.algorithms.base import Experience, ModulatedAdvantages
from megatron_empg.algorithms.empg import Empg, EmpgModulation
from tests.unit.algorithms.experiences import experience

EPISODES, TURNS = 200, 5


def batch_of(episodes: int = EPISODES, turns: int = TURNS) -> Experience:
    return experience([[0.0] * turns] * episodes, lengths=[[1 + turn for turn in range(turns)]] * episodes)


def batches(count: int, *, advantage: float = 1.0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Advantages and entropies of batches that are alike; their entropies have a long tail, as measured ones."""
    generator = torch.Generator().manual_seed(5)
    drawn = []
    for _ in range(count):
        of_episode = torch.randn(EPISODES, generator=generator, dtype=torch.float64) * advantage
        entropies = torch.rand(EPISODES * TURNS, generator=generator, dtype=torch.float64).square()
        drawn.append((of_episode.repeat_interleave(TURNS), entropies))
    return drawn


def play(modulation: EmpgModulation, drawn: list[tuple[torch.Tensor, torch.Tensor]]) -> list[ModulatedAdvantages]:
    played = batch_of()
    return [modulation.modulate(advantages, entropies, played) for advantages, entropies in drawn]


def test_a_running_mean_is_weighted_by_age_and_right_from_the_first_value_on() -> None:
    running = RunningMean()
    assert running.mean is None
    running.add(4.0)
    assert running.mean == pytest.approx(4.0)
    for value in (1.0, 7.0):
        running.add(value)
    assert running.mean == pytest.approx((0.81 * 4 + 0.9 * 1 + 7) / (0.81 + 0.9 + 1))


@pytest.mark.parametrize("normalize", ["minmax", "quantile", "rank"])
@pytest.mark.parametrize("ratio", [1.0, 3.0, 20.0])
def test_g_reaches_the_ratio_from_the_second_batch_on(normalize: str, ratio: float) -> None:
    modulation = Empg.model_validate({"normalize": normalize, "target_scale_ratio": ratio}).make()
    for modulated in play(modulation, batches(4))[1:]:
        reached = modulated.metrics["empg/g_q95"] / modulated.metrics["empg/g_q05"]
        assert math.log(reached) == pytest.approx(math.log(ratio), rel=0.1, abs=1e-12)


@pytest.mark.parametrize("weights", ["turn", "token"])
@pytest.mark.parametrize("size", [0.01, 1.0])
def test_the_bonus_reaches_its_ratio_however_large_advantages_are(weights: str, size: float) -> None:
    modulation = Empg.model_validate({"weights": weights, "target_bonus_ratio": 0.25}).make()
    weight = batch_of().turn_lengths.double() if weights == "token" else torch.ones(EPISODES * TURNS)
    drawn = batches(4, advantage=size)
    for (advantages, _), modulated in list(zip(drawn, play(modulation, drawn), strict=True))[1:]:
        reached = (weight * modulated.bonus.abs()).sum() / (weight * advantages.abs()).sum()
        assert reached.item() == pytest.approx(0.25, rel=0.15)


def test_k_and_zeta_are_those_of_the_formulas() -> None:
    modulation = Empg(target_scale_ratio=3.0, target_bonus_ratio=0.25, k_f=2.0).make()
    drawn = batches(2)
    first, second = play(modulation, drawn)
    low, high = first.metrics["empg/h_norm_q05"], first.metrics["empg/h_norm_q95"]
    assert second.metrics["empg/k"] == pytest.approx(math.log(3.0) / (high - low))
    followed = [first.h_norm[turn].item() for turn in range(EPISODES * TURNS) if turn % TURNS > 0]
    clarity = sum(math.exp(-2.0 * h) for h in followed) / (EPISODES * TURNS)
    size = sum(abs(value) for value in drawn[0][0].tolist()) / (EPISODES * TURNS)
    assert second.metrics["empg/zeta"] == pytest.approx(0.25 * size / clarity)


def test_the_first_batch_has_the_given_constants() -> None:
    modulation = Empg(k=2.5, zeta=0.05, target_scale_ratio=3.0, target_bonus_ratio=0.2).make()
    (first,) = play(modulation, batches(1))
    assert (first.metrics["empg/k"], first.metrics["empg/zeta"]) == (2.5, 0.05)
    # What is logged was applied: min-max has H_norm reach from 0 to 1.
    assert math.log(first.scale.max() / first.scale.min()) == pytest.approx(2.5)
    followed = torch.arange(EPISODES * TURNS) % TURNS > 0
    assert first.bonus.max().item() == pytest.approx(0.05 * math.exp(-first.h_norm[followed].min().item()))


def test_off_by_default_nothing_is_kept() -> None:
    modulation = Empg().make()
    for modulated in play(modulation, batches(3)):
        assert (modulated.metrics["empg/k"], modulated.metrics["empg/zeta"]) == (1.0, 0.1)
    assert modulation.state_dict() == {}


def test_a_resumed_run_has_the_constants_of_one_that_went_on() -> None:
    section = Empg(target_scale_ratio=4.0, target_bonus_ratio=0.1)
    drawn = batches(6)
    whole = play(section.make(), drawn)
    before = section.make()
    play(before, drawn[:3])
    after = section.make()
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for resumed, expected in zip(play(after, drawn[3:]), whole[3:], strict=True):
        assert resumed.metrics == expected.metrics
        assert torch.equal(resumed.advantages, expected.advantages)


def test_an_empty_state_is_a_fresh_start() -> None:
    modulation = Empg(target_scale_ratio=4.0).make()
    play(modulation, batches(2))
    modulation.load_state_dict({})
    assert modulation.state_dict() == {}
    assert play(modulation, batches(1))[0].metrics["empg/k"] == 1.0


def test_batches_that_say_nothing_change_nothing() -> None:
    modulation = Empg(target_scale_ratio=4.0, target_bonus_ratio=0.1).make()
    none = torch.empty(0, dtype=torch.float64)
    modulation.modulate(none, none, batch_of(0))
    assert modulation.state_dict() == {}
    ones = torch.ones(10, dtype=torch.float64)
    modulation.modulate(ones, ones, batch_of(10, 1))  # no spread of entropies, and no turn that is followed
    (first,) = play(modulation, batches(1))
    assert (first.metrics["empg/k"], first.metrics["empg/zeta"]) == (1.0, 0.1)


def test_bad_input_is_not_counted() -> None:
    modulation = Empg(target_scale_ratio=4.0).make()
    advantages, entropies = batches(1)[0]
    with pytest.raises(ValueError, match=r"entropies\[0\] is -1"):
        modulation.modulate(advantages, entropies - 1 - entropies[0], batch_of())
    assert modulation.state_dict() == {}


def test_constants_stay_in_a_recipes_range() -> None:
    targets = EmpgTargets(scale_ratio=1000.0, bonus_ratio=10.0)
    targets.observe(entropy_spread=1e-9, advantage_size=100.0, clarity=1e-9)
    assert (targets.k(1.0), targets.zeta(0.1)) == (100.0, 100.0)


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"clarity": [1.0, 0.1]}, r"running statistics \['clarity'\]"),
        ({"entropy_spread": [1.0]}, r"entropy_spread is \[1.0\]"),
        ({"entropy_spread": None}, r"entropy_spread is None"),
        ({"entropy_spread": "12"}, r"entropy_spread is '12'"),
        ([1.0, 2.0], r"running statistics are \[1.0, 2.0\]; they must be a dict"),
        ({"entropy_spread": [math.nan, 0.1]}, "both finite"),
        ({"entropy_spread": [10**400, 0.1]}, "both finite and not negative"),
        ({"entropy_spread": [-1.0, 0.1]}, "both finite and not negative"),
    ],
)
def test_a_state_that_does_not_fit_is_named(state: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Empg(target_scale_ratio=4.0).make().load_state_dict(state)


@pytest.mark.parametrize(
    "keys", [{"target_scale_ratio": 0.5}, {"target_bonus_ratio": -0.1}, {"target_bonus_ratio": 11.0}]
)
def test_targets_that_cannot_be_are_refused(keys: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Empg.model_validate(keys)
