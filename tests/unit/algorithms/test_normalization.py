"""H_norm by extremes, quantiles and ranks, against loops over Python floats."""

import math

import pytest
import torch

from megatron_empg.algorithms.normalization import (
    Normalization,
    by_extremes_of_sets,
    by_quantiles,
    by_rank,
    fault_in,
    normalized_entropy,
    spread,
)

WAYS: list[Normalization] = ["minmax", "quantile", "rank"]


def quantile(values: list[float], share: float) -> float:
    """Between the two values that stand around the place ``share·(n - 1)`` in order."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def rank(values: list[float], value: float) -> float:
    """How many values are smaller, and half of the others that are equal."""
    smaller = sum(other < value for other in values)
    equal = sum(other == value for other in values)
    return smaller + (equal - 1) / 2


def random_entropies(seed: int, turns: int) -> list[float]:
    """Of which many are equal where the seed is odd."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(turns, generator=generator, dtype=torch.float64) * 3
    if seed % 2:
        values = (values * 4).round() / 4
    return values.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_quantiles_stand_for_the_extremes_and_what_is_beyond_is_clamped(seed: int) -> None:
    values = random_entropies(seed, 2 + 7 * seed)
    low, high = quantile(values, 0.05), quantile(values, 0.95)
    expected = [min(max((value - low) / (high - low + 1e-8), 0.0), 1.0) for value in values]
    given = by_quantiles(torch.tensor(values, dtype=torch.float64))
    assert given.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_ranks_are_scaled_to_one_and_equal_entropies_share_theirs(seed: int) -> None:
    values = random_entropies(seed, 2 + 7 * seed)
    expected = [rank(values, value) / (len(values) - 1) for value in values]
    given = by_rank(torch.tensor(values, dtype=torch.float64))
    assert given.tolist() == pytest.approx(expected, abs=1e-15)
    assert given.mean().item() == pytest.approx(0.5)


def test_one_outlier_stretches_the_extremes_alone() -> None:
    usual = torch.linspace(1, 2, 99, dtype=torch.float64)
    batch = torch.cat([usual, usual.new_tensor([50.0])])
    assert normalized_entropy(batch, "minmax")[:99].max() < 0.03
    assert normalized_entropy(batch, "quantile")[:99].max() == 1
    assert normalized_entropy(batch, "rank")[:99].max() > 0.98


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("entropies", [[], [0.7], [0.0, 0.0], [1.3] * 5])
def test_without_spread_all_are_zero(how: Normalization, entropies: list[float]) -> None:
    assert normalized_entropy(torch.tensor(entropies), how).tolist() == [0.0] * len(entropies)


def test_where_both_quantiles_are_equal_all_are_zero() -> None:
    entropies = torch.full((100,), 0.5)
    entropies[3] = 4.0
    assert by_quantiles(entropies).tolist() == [0.0] * 100


@pytest.mark.parametrize("how", WAYS)
def test_float32_is_normalised_in_float64_and_left_as_it_was(how: Normalization) -> None:
    entropies = torch.rand(50, generator=torch.Generator().manual_seed(2))
    before = entropies.clone()
    given = normalized_entropy(entropies, how)
    assert given.dtype == torch.float64
    assert torch.equal(entropies, before)
    assert torch.equal(given, normalized_entropy(entropies.double(), how))


def test_a_set_is_normalised_by_its_own_extremes_wherever_its_turns_lie() -> None:
    entropies = torch.tensor([1.0, 9.0, 3.0, 5.0, 2.0], dtype=torch.float64)
    given = by_extremes_of_sets(entropies, torch.tensor([0, 2, 0, 2, 0]), 3)
    assert given.tolist() == pytest.approx([0, 1, 1, 0, 0.5], abs=1e-8)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_spread_is_that_of_a_loop(seed: int) -> None:
    values = random_entropies(seed, 3 + 20 * seed)
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    expected = (math.sqrt(variance), quantile(values, 0.05), quantile(values, 0.95))
    assert spread(torch.tensor(values, dtype=torch.float64)) == pytest.approx(expected)


def test_one_turn_has_no_spread() -> None:
    assert spread(torch.tensor([0.25])) == (0.0, 0.25, 0.25)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.1])
def test_the_first_bad_value_is_named(bad: float) -> None:
    values = torch.tensor([0.1, 0.2, bad, bad, 0.3])
    fault = fault_in("entropies", values, lowest=0)
    assert fault is not None
    assert fault.startswith("entropies[2] is")
    assert fault.endswith("entropies must be finite and not negative")


def test_rounding_below_the_lowest_is_no_fault() -> None:
    assert fault_in("entropies", torch.tensor([-1e-8, 2.0]), lowest=0) is None
    assert fault_in("advantages", torch.tensor([-3.0, 2.0])) is None
    assert fault_in("advantages", torch.empty(0)) is None
