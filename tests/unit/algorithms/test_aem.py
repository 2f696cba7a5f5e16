import math

import pytest
import torch

from megatron_empg.algorithms.aem import response_scale


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
