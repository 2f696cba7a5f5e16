"""Differences over seeds and questions: means, standard errors and p-values beside formulas and simulations."""

import math
from statistics import mean, stdev

import numpy as np
import pytest
from numpy.typing import NDArray

from megatron_empg.report.table.seeds import student_interval
from megatron_empg.study.bootstrap import paired_difference, standard_error


def drawn(
    rng: np.random.Generator, seeds: int, questions: int, *, of_seeds: float, of_questions: float, noise: float
) -> NDArray[np.float64]:
    """Differences of mean 0 whose three parts have these standard deviations."""
    by_seed = rng.normal(0, of_seeds, (seeds, 1))
    by_question = rng.normal(0, of_questions, (1, questions))
    return by_seed + by_question + rng.normal(0, noise, (seeds, questions))


def test_the_mean_is_over_all_and_a_single_seed_has_no_interval() -> None:
    differences = np.array([[1.0, 0.0, -1.0, 1.0]])
    found = paired_difference(differences)
    assert (found.mean, found.seeds, found.questions) == (0.25, 1, 4)
    assert (found.error, found.interval, found.p_value) == (None, None, None)


def test_the_same_seed_draws_the_same() -> None:
    differences = drawn(np.random.default_rng(1), 3, 40, of_seeds=0.1, of_questions=0.2, noise=0.5)
    assert paired_difference(differences, 7) == paired_difference(differences, 7)
    assert paired_difference(differences, 7) != paired_difference(differences, 8)


def test_where_seeds_alone_differ_the_interval_is_students() -> None:
    by_seed = [0.02, -0.01, 0.05, 0.04]
    differences = np.repeat(np.array(by_seed)[:, None], 50, axis=1)
    found = paired_difference(differences)
    expected = student_interval(by_seed)
    assert found.interval is not None
    assert found.interval.low == pytest.approx(expected.low, abs=1e-3)
    assert found.interval.high == pytest.approx(expected.high, abs=1e-3)
    assert found.error == pytest.approx(stdev(by_seed) / 2, rel=0.03)


def test_where_questions_alone_differ_the_error_is_that_of_their_mean() -> None:
    by_question = np.random.default_rng(2).normal(0, 1, 60)
    differences = np.repeat(by_question[None, :], 3, axis=0)
    assert standard_error(differences) == pytest.approx(by_question.std(ddof=1) / math.sqrt(60), rel=0.03)


def test_the_luck_of_single_answers_counts_once() -> None:
    rng = np.random.default_rng(3)
    errors = []
    for _ in range(40):
        errors.append(standard_error(drawn(rng, 6, 50, of_seeds=0, of_questions=0, noise=1)) ** 2)
    # 1.08 is expected, as no question's part is below 0; counted twice it would be 2.
    assert 0.7 < 300 * mean(errors) < 1.5


def test_seeds_that_agree_by_chance_are_not_sure() -> None:
    # Both seeds gain one question of four, each another one.
    differences = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    found = paired_difference(differences)
    assert found.interval is not None
    assert found.interval.low < 0 < found.interval.high
    assert found.p_value is not None
    assert found.p_value > 0.05


@pytest.mark.parametrize(
    ("of_seeds", "of_questions", "noise"), [(0.05, 0.0, 0.5), (0.0, 0.3, 0.5), (0.05, 0.3, 0.1), (0.0, 0.0, 0.5)]
)
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_the_truth_at_least_nineteen_times_in_twenty(
    seeds: int, of_seeds: float, of_questions: float, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_empg.study.bootstrap.DRAWS", 1000)
    rng = np.random.default_rng(4)
    held, alarms, trials = 0, 0, 200
    for trial in range(trials):
        differences = drawn(rng, seeds, 40, of_seeds=of_seeds, of_questions=of_questions, noise=noise)
        found = paired_difference(differences, trial)
        assert found.interval is not None
        assert found.p_value is not None
        held += found.interval.low <= 0 <= found.interval.high
        alarms += found.p_value < 0.05
    # Of 200 at 95%, fewer than 180 would come once in a thousand times.
    assert held >= 180
    assert held + alarms == trials  # p is below 0.05 where the interval does not hold 0


def test_no_difference_at_all_has_a_p_of_one() -> None:
    found = paired_difference(np.zeros((3, 10)))
    assert (found.error, found.p_value) == (0.0, 1.0)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (3,)])
def test_differences_are_of_seeds_and_questions(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"they are \[seeds, questions\]"):
        paired_difference(np.zeros(shape))
