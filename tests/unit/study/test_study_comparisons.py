"""Which runs are compared, question by question, and how many of them are tested at once."""

from pathlib import Path

import pytest

from megatron_empg.study.comparisons import comparisons_of, differences_of
from megatron_empg.study.errors import StudyError
from megatron_empg.study.results import RunResult
from tests.support.studies import SERIES, result, small_study


def by_cell(*results: RunResult) -> dict:
    return {one.cell: one for one in results}


def test_differences_are_of_the_same_seed_and_question() -> None:
    results = by_cell(
        result("plain", 1, "0011"),
        result("empg", 1, "0110"),
        result("plain", 2, "1111"),
        result("empg", 2, "0111"),
    )
    found = differences_of(results, "quickstart", "empg", "plain", SERIES, [2, 1])
    assert found is not None
    assert found.tolist() == [[-1, 0, 0, 0], [0, 1, 0, -1]]


def test_a_seed_that_did_not_finish_with_both_is_not_paired() -> None:
    results = by_cell(
        result("plain", 1, "0011"),
        result("empg", 1, "0110"),
        result("plain", 2, "1111", ended="collapsed"),
        result("empg", 2, "0111"),
        result("empg", 3, "0111"),
    )
    found = differences_of(results, "quickstart", "empg", "plain", SERIES, [1, 2, 3])
    assert found is not None
    assert found.shape == (1, 4)
    assert differences_of(results, "quickstart", "empg", "plain", "test_ood/sampled", [1]) is None


def test_unlike_questions_are_refused() -> None:
    results = by_cell(result("plain", 1, "0011"), result("empg", 1, "01100"))
    with pytest.raises(StudyError, match=r"empg and plain, seed 1, test_id/sampled: \[4, 5\] questions"):
        differences_of(results, "quickstart", "empg", "plain", SERIES, [1])


def test_the_correction_is_over_all_comparisons_with_a_p_value(tmp_path: Path) -> None:
    methods = {"plain": {}, "a": {"base": "plain"}, "b": {"base": "plain"}, "c": {"base": "plain"}, "alone": {}}
    study = small_study(tmp_path, methods=methods)
    lines = [result("plain", seed, "0" * 12) for seed in (1, 2)]
    lines += [result("a", seed, "1" * 11 + "0") for seed in (1, 2)]
    lines += [result("b", seed, f"{'1' * seed}{'0' * (12 - seed)}") for seed in (1, 2)]
    lines += [result("c", 1, "1" * 12), result("alone", 1, "1" * 12)]
    found = {one.method: one for one in comparisons_of(study, by_cell(*lines))}
    assert list(found) == ["a", "b", "c"]
    assert (found["c"].corrected, found["c"].difference.p_value) == (None, None)
    smaller, larger = found["a"].difference.p_value, found["b"].difference.p_value
    assert smaller is not None
    assert larger is not None
    assert smaller < larger
    assert found["a"].corrected == pytest.approx(2 * smaller)
    assert found["b"].corrected == pytest.approx(max(larger, 2 * smaller))
