"""AEM's scale against a loop, over each kind of set."""

import math

import pytest
import torch
from pydantic import ValidationError

from megatron_empg.algorithms.aem import Aem, response_scale
from tests.unit.algorithms.experiences import experience


def expected(entropies: list[float], strength: float) -> list[float]:
    low, high = min(entropies), max(entropies)
    scale = [math.exp(-strength * (h - low) / (high - low + 1e-8)) for h in entropies]
    mean = sum(scale) / len(scale)
    return [value / mean for value in scale]


def test_over_the_batch() -> None:
    entropies = [0.2, 1.4, 0.9, 0.2]
    scale = response_scale(torch.tensor(entropies, dtype=torch.float64), strength=1.7)
    assert scale.tolist() == pytest.approx(expected(entropies, 1.7), rel=1e-12)


def test_over_sets_that_lie_apart() -> None:
    entropies, sets = torch.tensor([0.2, 5.0, 1.4, 3.0, 2.0], dtype=torch.float64), torch.tensor([7, 1, 7, 1, 4])
    scale = response_scale(entropies, sets).tolist()
    assert [scale[0], scale[2]] == pytest.approx(expected([0.2, 1.4], 1.0), rel=1e-12)
    assert [scale[1], scale[3]] == pytest.approx(expected([5.0, 3.0], 1.0), rel=1e-12)
    assert scale[4] == 1.0


def test_strength_zero_and_no_spread_change_nothing() -> None:
    assert torch.equal(response_scale(torch.rand(9), strength=0.0), torch.ones(9))
    assert torch.equal(response_scale(torch.full((3,), 0.4)), torch.ones(3))
    assert response_scale(torch.zeros(0)).shape == (0,)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"sets \(2,\)"):
        response_scale(torch.zeros(3), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="must be finite"):
        response_scale(torch.tensor([math.nan]))
    with pytest.raises(ValueError, match="strength is -1"):
        response_scale(torch.zeros(3), strength=-1)


# As a part of an algorithm

PLAYED = experience([[0.0, 0, 1], [0.0], [0.0, 1], [1.0]], groups=[5, 2, 5, 2])
ADVANTAGES = torch.tensor([0.5, 0.5, 0.5, -1.0, 0.7, 0.7, 0.2], dtype=torch.float64)
ENTROPIES = torch.tensor([0.3, 2.0, 0.9, 1.1, 0.2, 0.7, 1.1], dtype=torch.float64)
SETS = {
    "batch": [[0, 1, 2, 3, 4, 5, 6]],
    "question": [[0, 1, 2, 4, 5], [3, 6]],
    "trajectory": [[0, 1, 2], [3], [4, 5], [6]],
}


@pytest.mark.parametrize("over", SETS)
@pytest.mark.parametrize("strength", [0.0, 1.0, 2.5])
def test_advantages_are_scaled_within_each_set(over: str, strength: float) -> None:
    modulated = (
        Aem.model_validate({"set": over, "strength": strength}).make().modulate(ADVANTAGES, ENTROPIES, PLAYED)
    )
    scale = [0.0] * 7
    for members in SETS[over]:
        of_set = expected([ENTROPIES[turn].item() for turn in members], strength)
        for turn, value in zip(members, of_set, strict=True):
            scale[turn] = value
    assert modulated.scale.tolist() == pytest.approx(scale, rel=1e-12)
    assert modulated.advantages.tolist() == pytest.approx((ADVANTAGES * torch.tensor(scale)).tolist(), rel=1e-6)
    assert modulated.bonus.tolist() == [0.0] * 7
    assert modulated.metrics == {
        "aem/scale_min": pytest.approx(min(scale)),
        "aem/scale_max": pytest.approx(max(scale)),
        "aem/amplified_turns": pytest.approx(sum(value > 1 for value in scale) / 7),
        "aem/damped_turns": pytest.approx(sum(value < 1 for value in scale) / 7),
    }


def test_the_mean_scale_of_a_set_is_one_and_a_turn_alone_keeps_its_advantage() -> None:
    modulated = Aem(set="trajectory", strength=3.0).make().modulate(ADVANTAGES, ENTROPIES, PLAYED)
    assert modulated.scale[:3].mean().item() == pytest.approx(1.0)
    assert modulated.scale[4:6].mean().item() == pytest.approx(1.0)
    assert modulated.scale[[3, 6]].tolist() == [1.0, 1.0]
    assert modulated.metrics["aem/amplified_turns"] + modulated.metrics["aem/damped_turns"] == pytest.approx(5 / 7)


@pytest.mark.parametrize("over", SETS)
@pytest.mark.parametrize("rewards", [[], [[1.0]], [[1.0], [0.0]], [[0.0, 0.0], [1.0, 0.0]]])
def test_degenerate_batches_are_defined(over: str, rewards: list[list[float]]) -> None:
    played = experience(rewards, groups=list(range(len(rewards))))
    turns = len(played.turn_lengths)
    part = Aem.model_validate({"set": over}).make()
    modulated = part.modulate(torch.full((turns,), 0.5), torch.full((turns,), 1.3), played)
    assert modulated.scale.tolist() == [1.0] * turns
    assert modulated.h_norm.tolist() == [0.0] * turns
    assert modulated.advantages.tolist() == [0.5] * turns
    assert modulated.advantages.dtype == torch.float32
    assert bool(modulated.metrics) == (turns > 0)


def test_it_keeps_no_state() -> None:
    part = Aem().make()
    assert part.state_dict() == {}
    with pytest.raises(ValueError, match="keeps no state"):
        part.load_state_dict({"mean": 1.0})


def test_an_impossible_batch_is_named() -> None:
    part = Aem().make()
    with pytest.raises(ValueError, match=r"entropies\[2\] is -0.5"):
        part.modulate(ADVANTAGES, torch.tensor([0.3, 2, -0.5, 1, 1, 1, 1]), PLAYED)
    with pytest.raises(ValueError, match=r"advantages\[0\] is inf"):
        part.modulate(ADVANTAGES.new_full((7,), math.inf), ENTROPIES, PLAYED)
    with pytest.raises(ValueError, match=r"entropies \(6,\), turns \(7,\)"):
        part.modulate(ADVANTAGES, ENTROPIES[:6], PLAYED)
    with pytest.raises(ValidationError):
        Aem(strength=-1.0)
