"""`modulate_advantages` against the paper's equations, written as plain loops over Python floats."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_empg.algorithms.empg import modulate_advantages, modulation


def equations(
    advantages: list[float],
    entropies: list[float],
    trajectories: list[int],
    k: float,
    k_f: float,
    zeta: float,
    center: bool,
) -> list[float]:
    """The paper's equations, one step at a time."""
    if not entropies:
        return []
    low, high = min(entropies), max(entropies)
    h_norm = [(entropy - low) / (high - low + 1e-8) for entropy in entropies]
    mean_scale = math.fsum(math.exp(-k * h) for h in h_norm) / len(h_norm)
    result = []
    for t, advantage in enumerate(advantages):
        value = advantage * math.exp(-k * h_norm[t]) / mean_scale
        if t + 1 < len(advantages) and trajectories[t + 1] == trajectories[t]:
            value += zeta * math.exp(-k_f * h_norm[t + 1])
        result.append(value)
    if center:
        mean = math.fsum(result) / len(result)
        result = [value - mean for value in result]
    return result


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[float], list[float], list[int]]:
    """Trajectories of 1 to 6 steps under shuffled names; entropies spread, equal or barely different."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=0, max_size=7))
    names = draw(st.permutations(range(len(lengths))))
    trajectories = [name for name, length in zip(names, lengths, strict=True) for _ in range(length)]
    per_trajectory = draw(st.lists(st.floats(-3, 3), min_size=len(lengths), max_size=len(lengths)))
    advantages = [a for a, length in zip(per_trajectory, lengths, strict=True) for _ in range(length)]
    entropy = st.one_of(st.floats(0, 12), st.sampled_from([0.0, 0.7, 0.7 + 1e-9]))
    entropies = draw(st.lists(entropy, min_size=len(advantages), max_size=len(advantages)))
    return advantages, entropies, trajectories


@settings(max_examples=300, deadline=None, derandomize=True)
@given(batches(), st.floats(0, 4), st.floats(0, 4), st.floats(-1, 1), st.booleans())
def test_equals_the_papers_equations(
    batch: tuple[list[float], list[float], list[int]], k: float, k_f: float, zeta: float, center: bool
) -> None:
    advantages, entropies, trajectories = batch
    result = modulate_advantages(
        torch.tensor(advantages, dtype=torch.float64),
        torch.tensor(entropies, dtype=torch.float64),
        torch.tensor(trajectories, dtype=torch.long),
        k=k,
        k_f=k_f,
        zeta=zeta,
        center=center,
    )
    expected = torch.tensor(
        equations(advantages, entropies, trajectories, k, k_f, zeta, center), dtype=torch.float64
    )
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_an_example_by_hand() -> None:
    # One trajectory of two steps with H = 1, 3 and one of one step with H = 2: H_norm = 0, 1, 1/2.
    parts = modulation(
        torch.tensor([2.0, 2.0, -1.0], dtype=torch.float64),
        torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64),
        torch.tensor([0, 0, 1]),
        center=False,
    )
    mean = (1 + math.exp(-1) + math.exp(-0.5)) / 3
    bonus = 0.1 * math.exp(-1)
    expected = [2 / mean + bonus, 2 * math.exp(-1) / mean, -math.exp(-0.5) / mean]
    assert parts.h_norm.tolist() == pytest.approx([0, 1, 0.5], abs=1e-8)
    assert parts.g.tolist() == pytest.approx([1 / mean, math.exp(-1) / mean, math.exp(-0.5) / mean])
    assert parts.bonus.tolist() == pytest.approx([bonus, 0, 0])
    assert parts.advantage.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_switched_off_it_returns_its_input_bit_for_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(97, generator=generator).to(dtype)
    entropies = torch.rand(97, generator=generator)
    trajectories = torch.arange(97) // 5
    result = modulate_advantages(advantages, entropies, trajectories, k=0, zeta=0, center=False)
    assert result.dtype == dtype
    assert torch.equal(result, advantages)


def test_last_steps_have_no_bonus_and_none_crosses_trajectories() -> None:
    trajectories = torch.tensor([4, 4, 4, 1, 9, 9])
    parts = modulation(torch.zeros(6), torch.tensor([1.0, 2, 3, 0, 5, 4]), trajectories, center=False)
    assert (parts.bonus > 0).tolist() == [True, True, False, False, True, False]
    assert torch.equal(parts.advantage, parts.bonus)


def test_a_bonus_does_not_depend_on_another_trajectory() -> None:
    trajectories = torch.tensor([0, 0, 1, 1])
    first = modulation(torch.ones(4), torch.tensor([0.0, 0.5, 1.0, 0.2]), trajectories)
    second = modulation(torch.ones(4), torch.tensor([0.0, 0.5, 0.3, 1.0]), trajectories)
    assert torch.equal(first.bonus[:2], second.bonus[:2])
    assert first.bonus[2] != second.bonus[2]


@pytest.mark.parametrize("entropies", [[], [0.4], [1.3, 1.3, 1.3], [0.0, 0.0]])
def test_no_spread_of_entropies_is_defined(entropies: list[float]) -> None:
    steps = len(entropies)
    parts = modulation(
        torch.full((steps,), 0.5), torch.tensor(entropies), torch.zeros(steps, dtype=torch.long), center=False
    )
    assert parts.h_norm.tolist() == [0.0] * steps
    assert parts.g.tolist() == [1.0] * steps
    assert all(part.isfinite().all() and part.shape == (steps,) for part in parts)


def test_an_entropy_rounded_below_zero_is_no_fault() -> None:
    parts = modulation(torch.ones(2), torch.tensor([-1e-8, 1.0]), torch.tensor([0, 1]))
    assert parts.h_norm.tolist() == pytest.approx([0.0, 1.0])


def test_scale_has_batch_mean_one_and_centring_gives_mean_zero() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = modulation(
        torch.randn(40, generator=generator, dtype=torch.float64),
        torch.rand(40, generator=generator, dtype=torch.float64) * 3,
        torch.arange(40) // 4,
        k=2.0,
    )
    assert parts.g.mean().item() == pytest.approx(1.0, abs=1e-12)
    assert parts.g.max() / parts.g.min() == pytest.approx(math.exp(2.0), rel=1e-6)
    assert parts.advantage.mean().item() == pytest.approx(0.0, abs=1e-12)


STEPS = {"advantages": torch.zeros(3), "entropies": torch.zeros(3), "trajectory_ids": torch.tensor([0, 0, 1])}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"entropies": torch.tensor([0.1, float("nan"), 0.2])}, r"entropies\[1\] is nan"),
        ({"entropies": torch.tensor([0.1, 0.2, -0.5])}, r"entropies\[2\] is -0.5"),
        ({"entropies": torch.tensor([float("inf"), 0.2, 0.5])}, r"entropies\[0\] is inf"),
        ({"advantages": torch.tensor([0.0, float("inf"), 0.0])}, r"advantages\[1\] is inf"),
        ({"entropies": torch.zeros(2)}, r"entropies \(2,\)"),
        ({name: values.reshape(3, 1) for name, values in STEPS.items()}, "one-dimensional"),
        ({"trajectory_ids": torch.tensor([0, 1, 0])}, "trajectory 0 are not contiguous"),
        ({"trajectory_ids": torch.zeros(3)}, "named by an integer"),
        ({"advantages": torch.tensor([0, 1, 0])}, "floating point"),
        ({"k": -1.0}, "k is -1.0"),
        ({"zeta": float("nan")}, "zeta is nan"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        modulate_advantages(**{**STEPS, **change})  # type: ignore[arg-type]
