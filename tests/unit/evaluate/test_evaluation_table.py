"""Figures, comparisons and tables from outcomes made by hand, as numbers, plain text and Markdown."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from megatron_empg.common.wilson import wilson
from megatron_empg.evaluate.comparison import compare, what_it_resolves, what_questions_resolve
from megatron_empg.evaluate.figures import Figures, figures, ks, summarise
from megatron_empg.evaluate.intervals import mcnemar
from megatron_empg.evaluate.policies import labels
from megatron_empg.evaluate.questions import Decoding, SampleOutcome
from megatron_empg.evaluate.table import compared_line, result_line, tables


def outcome(number: int, success: bool, **other: Any) -> SampleOutcome:
    known = {
        "id": f"question {number}", "split": "test_id", "decoding": "greedy", "kind": "seen", "hops": None,
        "sample": 0, "success": success, "end": "success" if success else "failure", "reward": float(success),
        "turns": 2, "tokens": 30, "error": None, "question": f"{number:016x}",
    }  # fmt: skip
    return SampleOutcome(**{**known, **other})


def answers(wins: Sequence[bool], **other: Any) -> list[SampleOutcome]:
    return [outcome(number, won, **other) for number, won in enumerate(wins)]


def sampled(wins: Sequence[Sequence[bool]], **other: Any) -> list[SampleOutcome]:
    return [
        outcome(number, won, sample=sample, decoding="sampled", **other)
        for number, question in enumerate(wins)
        for sample, won in enumerate(question)
    ]


def test_single_samples_have_wilsons_interval() -> None:
    found = figures(answers([True] * 3 + [False] * 7), seed=0)
    assert (found.questions, found.samples, found.mean.value) == (10, 1, 0.3)
    assert found.mean.interval == wilson(3, 10)
    assert found.pass_at == {}


def test_errors_are_failures_and_are_counted_by_their_kind() -> None:
    errors = [
        outcome(number, False, end="error", error=f"{kind}: why", reward=0.0, turns=0, tokens=0)
        for number, kind in enumerate(["EngineError", "EngineError", "RoundTimeout"])
    ]
    found = figures([*errors, outcome(3, True)], seed=0)
    assert found.mean.value == 0.25
    assert found.errors == {"EngineError": 2, "RoundTimeout": 1}
    assert (found.turns, found.tokens) == (2.0, 30.0), "of episodes that were played"
    assert figures(errors, seed=0).turns is None


def test_several_samples_give_mean_and_pass_at_k() -> None:
    found = figures(sampled([[True, False, False, False], [False] * 4, [True] * 4]), seed=0)
    assert found.mean.value == pytest.approx(5 / 12)
    assert {k: estimate.value for k, estimate in found.pass_at.items()} == {
        2: pytest.approx((1 / 2 + 0 + 1) / 3),
        4: pytest.approx(2 / 3),
    }
    assert found.mean.interval.low < found.mean.value < found.mean.interval.high


def test_the_k_of_pass_at_k() -> None:
    assert [ks(samples) for samples in (1, 2, 3, 4, 6, 8)] == [[], [2], [2, 3], [2, 4], [2, 4, 6], [2, 4, 8]]


def test_an_evaluation_that_is_not_whole_has_no_figures() -> None:
    with pytest.raises(ValueError, match="more samples than others"):
        figures([*sampled([[True, True]]), outcome(1, True, decoding="sampled")], seed=0)
    with pytest.raises(ValueError, match="no outcome"):
        figures([], seed=0)


def both_splits(shift: int = 0) -> list[SampleOutcome]:
    """Eight questions of each split; of the second in two kinds and of one to three hops."""
    found: list[SampleOutcome] = []
    for number in range(8):
        found.append(outcome(number, number < 4 + shift, hops=1 + number % 2))
    for number in range(8):
        kind = "longer" if number < 2 else "held_out_path"
        found.append(outcome(number, number < 1 + shift, split="test_ood", kind=kind, hops=3))
    return found


def test_figures_are_told_by_split_kind_and_hops_and_over_all() -> None:
    ours, theirs, together = summarise(both_splits(), seed=0)
    assert (ours.split, theirs.split, together.split) == ("test_id", "test_ood", "all")
    assert (ours.all.mean.value, theirs.all.mean.value, together.all.mean.value) == (0.5, 0.125, 5 / 16)
    assert {kind: one.mean.value for kind, one in theirs.by_kind.items()} == {"held_out_path": 0, "longer": 0.5}
    assert {hops: one.questions for hops, one in ours.by_hops.items()} == {1: 4, 2: 4}
    assert together.all.questions == 16


def test_a_table_like_the_papers() -> None:
    found = {"before": summarise(both_splits(), 0), "after": summarise(both_splits(2), 0)}
    table, by_hops = tables(found, temperature=1.0)
    assert table.headings == [
        "policy", "ID avg", "OOD held_out_path", "OOD longer", "OOD avg", "avg", "errors",
    ]  # fmt: skip
    assert [row[0] for row in table.rows] == ["before", "after", "questions"]
    assert table.rows[0][1:] == ["50.0 [21.5, 78.5]", "0.0", "50.0", "12.5 [2.2, 47.1]", "31.2 [14.2, 55.6]", "0"]
    assert table.rows[2] == ["questions", "8", "6", "2", "8", "16", ""]
    assert by_hops.headings == ["policy", "ID 1 hop", "ID 2 hops", "OOD 3 hops"]
    assert all(len(row) == len(table.headings) for row in table.rows)


def test_pass_at_k_has_a_table_of_its_own() -> None:
    found = {"one": summarise(sampled([[True, False], [False, False]]), 0)}
    titles = [table.title for table in tables(found, temperature=0.7)]
    assert titles == [
        "mean@2 in %, sampled at temperature 0.7 (intervals of 95%)",
        "pass@2 in %, sampled at temperature 0.7 (intervals of 95%)",
    ]


def test_names_from_data_cannot_break_a_table_or_a_terminal() -> None:
    hostile = "a|b\n\x1b[31m<script>*x*`"
    found = {"one": summarise([outcome(0, True, kind=hostile), outcome(1, True, kind="seen")], 0)}
    (table,) = tables(found, 1.0)
    for drawn in (table.plain(), table.markdown()):
        assert "\x1b" not in drawn
    assert len(table.plain().splitlines()) == 5
    rows = table.markdown().splitlines()[2:]
    assert len({row.replace(r"\|", "").count("|") for row in rows}) == 1
    assert "<script>" not in table.markdown().replace(r"\<script\>", "")
    assert "\x1b" not in result_line("", found["one"][0], 1.0)


def test_the_line_of_a_pass() -> None:
    (found,) = summarise(both_splits()[:8], 0)
    assert result_line("", found, 12.3) == "test_id greedy: 50.0% [21.5%, 78.5%] of 8 questions (seen 50.0%), 12 s"
    broken = [outcome(0, True), outcome(1, False, end="error", error="EngineError: gone")]
    (found,) = summarise(broken, 0)
    assert result_line("before", found, 1).startswith("before, test_id greedy: 50.0%")
    assert result_line("before", found, 1).endswith("; errors, counted as failures: 1 EngineError")


def test_two_policies_are_compared_on_the_same_questions() -> None:
    before = answers([True] * 50 + [False] * 50)
    after = answers([True] * 45 + [False] * 5 + [True] * 20 + [False] * 30)
    (found,) = compare("before", "after", {"before": before, "after": after}, seed=0)
    assert found.difference == pytest.approx(0.15)
    assert (found.first_better, found.second_better) == (5, 20)
    assert found.p_value == mcnemar(5, 20)
    assert 0 < found.interval.low < 0.15 < found.interval.high
    line = compared_line(found)
    assert line.startswith("after against before, test_id greedy: +15.0 points [+")
    assert line.endswith("better on 20 questions, worse on 5; McNemar's p = 0.0041")
    assert "100 questions can resolve a difference of 13." in what_it_resolves(found)


def test_the_order_of_outcomes_does_not_matter() -> None:
    before, after = answers([True, False] * 20), answers([True, True, False, False] * 10)
    shuffled = after.copy()
    random.Random(0).shuffle(shuffled)
    straight = compare("a", "b", {"a": before, "b": after}, seed=0)
    assert compare("a", "b", {"a": before, "b": shuffled}, seed=0) == straight


def test_several_samples_are_compared_without_a_p_value() -> None:
    before, after = sampled([[True, False], [False, False]] * 10), sampled([[True, True], [False, False]] * 10)
    (found,) = compare("a", "b", {"a": before, "b": after}, seed=0)
    assert found.difference == 0.25
    assert found.p_value is None
    assert (found.first_better, found.second_better) == (0, 10)


def test_policies_that_agree_are_not_said_to_be_alike() -> None:
    same = answers([True, False] * 50)
    (found,) = compare("a", "b", {"a": same, "b": same}, seed=0)
    assert found.resolvable is None
    assert found.interval.low < 0 < found.interval.high
    assert what_it_resolves(found) == (
        "100 questions without a difference allow that policies differ on 3.6% of all questions."
    )


def test_splits_are_compared_each_and_together() -> None:
    found = compare("a", "b", {"a": both_splits(), "b": both_splits(2)}, seed=0)
    assert [(one.split, one.difference) for one in found] == [("test_id", 0.25), ("test_ood", 0.25), ("all", 0.25)]
    assert found[-1].questions == 16


def test_other_questions_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="not asked the same questions"):
        compare("a", "b", {"a": answers([True] * 3), "b": answers([True] * 4)}, seed=0)


def test_the_number_of_questions_says_what_it_resolves() -> None:
    said = what_questions_resolve(200)
    assert "say a success of 50% to within 6.9 points" in said
    assert "they can resolve a difference of 10.8 points (with a power of 80%)" in said
    assert "they are too few to resolve any difference." in what_questions_resolve(2)
    assert what_questions_resolve(1)


@pytest.mark.parametrize("decoding", ["sampled", "greedy"])
def test_the_sentences_say_of_so_many_nowhere_else_than_in_a_result(decoding: Decoding) -> None:
    """Whoever counts the results of a log looks for `of N `."""
    for count in range(1, 120):
        assert f"of {count} " not in what_questions_resolve(count)
    found = summarise(answers([True, False], decoding=decoding), 0)
    drawn = "\n".join(table.plain() for table in tables({"a": found}, 1.0))
    assert "of 2 " not in drawn
    assert "of 2 " in result_line("", found[0], 0)


def test_figures_are_json() -> None:
    from dataclasses import asdict

    found = [asdict(one) for one in summarise(both_splits(), 0)]
    assert json.loads(json.dumps(found, allow_nan=False))[0]["all"]["mean"]["interval"]["low"] > 0.2
    assert isinstance(summarise(both_splits(), 0)[0].all, Figures)


def test_labels_are_the_shortest_ends_of_paths_that_tell_them_apart() -> None:
    from pathlib import Path

    assert labels([Path("runs/a/policy")]) == ["policy"]
    assert labels([Path("runs/a/policy"), Path("runs/b/policy")]) == ["a/policy", "b/policy"]
    assert labels([Path("policy"), Path("runs/policy")]) == ["policy", "runs/policy"]
    assert labels([]) == []
