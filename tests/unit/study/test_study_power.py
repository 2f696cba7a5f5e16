"""Seeds that a difference needs, beside tables and a simulation of the test itself."""

import numpy as np
import pytest

from megatron_empg.report.table.seeds import student_interval
from megatron_empg.study.power import POWER, seeds_needed, spread_of


def test_a_text_books_numbers() -> None:
    # A paired t-test at 5% and 80% with an effect of 0.5, 0.8 and 1 standard deviations takes 34, 15 and 10 pairs.
    for effect, pairs in ((0.5, 34), (0.8, 15), (1.0, 10)):
        found = seeds_needed(effect * 2**0.5, 1.0)
        assert found is not None
        assert abs(found - pairs) <= 1


def test_as_many_seeds_find_the_difference_four_times_in_five() -> None:
    rng = np.random.default_rng(1)
    difference, spread = 0.03, 0.02
    seeds = seeds_needed(difference, spread)
    assert seeds is not None
    found = 0
    for _ in range(400):
        gained = rng.normal(difference, spread, seeds) - rng.normal(0, spread, seeds)
        found += student_interval(gained.tolist()).low > 0
    assert POWER - 0.07 < found / 400 < POWER + 0.09


def test_what_no_number_of_seeds_finds_has_none() -> None:
    assert seeds_needed(0.0001, 0.1) is None
    assert seeds_needed(0.01, 0.0) == 2


def test_a_spread_takes_two_seeds() -> None:
    assert spread_of([0.5]) is None
    assert spread_of([0.5, 0.7]) == pytest.approx(0.02**0.5)


@pytest.mark.parametrize(("difference", "spread"), [(0.0, 1.0), (-0.1, 1.0), (0.1, -1.0)])
def test_what_cannot_be_is_refused(difference: float, spread: float) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        seeds_needed(difference, spread)
