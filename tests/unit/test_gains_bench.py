"""Whether bench/gains.py reads runs, keeps names apart, and counts what is gained."""

import importlib.util
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from megatron_empg.common.jsonl import append_line

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gains() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gains", ROOT / "bench/gains.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gains"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def evaluation(step: int, success: float) -> dict[str, Any]:
    return {
        "step": step,
        "time/evaluate": 10.0,
        "eval/test_id/greedy": success,
        "eval/test_id/greedy/garden": 0.1,
        "eval/test_id/greedy_questions": 500.0,
    }


def run_of(gains: ModuleType, seed: int, before: float, after: float) -> Any:
    setup = gains.Setup("small", "recipes/small.yaml", ["algorithm.name=grpo"])
    records = [evaluation(0, before), {"step": 1, "time/step": 2.4}, evaluation(2, after) | {"time/step": 2.4}]
    return gains.gain_of(setup, seed, records, "abc")


def test_a_run_has_its_first_and_last_evaluation(gains: ModuleType) -> None:
    gain = run_of(gains, 1, 0.5, 0.75)
    assert (gain.before, gain.after) == ({"test_id/greedy": 0.5}, {"test_id/greedy": 0.75})
    assert (gain.questions, gain.steps, gain.seconds) == ({"test_id/greedy": 500}, 2, 25)


@pytest.mark.parametrize("steps", [[0], [1, 2], [0, 1]], ids=["one", "none before", "none behind"])
def test_a_run_that_was_not_evaluated_before_and_after_has_no_line(gains: ModuleType, steps: list[int]) -> None:
    records = [evaluation(step, 0.5) if step in steps else {"step": step} for step in range(3)]
    with pytest.raises(ValueError, match="evaluated at steps"):
        gains.gain_of(gains.Setup("small", "recipes/small.yaml", []), 1, records, "abc")


def test_seeds_that_have_a_line_are_not_run_again(gains: ModuleType, tmp_path: Path) -> None:
    results = tmp_path / "gains.jsonl"
    assert gains.recorded(results) == []
    for seed in (1, 3):
        append_line(results, asdict(run_of(gains, seed, 0.5, 0.75)))
    found = gains.recorded(results)
    assert gains.missing(found[0].setup, [1, 2, 3, 4], found) == [2, 4]
    assert gains.missing(replace(found[0].setup, name="other"), [1, 2], found) == [1, 2]


def test_a_name_stands_for_one_setup(gains: ModuleType) -> None:
    found = [run_of(gains, 1, 0.5, 0.75)]
    with pytest.raises(ValueError, match=r"--name small stands for recipes/small\.yaml"):
        gains.missing(replace(found[0].setup, overrides=[]), [1], found)


def test_a_line_that_is_no_run_is_named(gains: ModuleType, tmp_path: Path) -> None:
    append_line(tmp_path / "gains.jsonl", {"name": "small"})
    with pytest.raises(ValueError, match="line 1: it is not the line of a run"):
        gains.recorded(tmp_path / "gains.jsonl")


def test_the_table_has_the_mean_gain_with_students_interval(gains: ModuleType) -> None:
    drawn = gains.table([run_of(gains, seed, 0.5, after) for seed, after in ((2, 0.7), (1, 0.6), (3, 0.65))])
    rows = drawn.splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == ["1", "2", "3", "mean"]
    # By hand: 15 +- 4.303 x 5 / sqrt(3).
    assert rows[-1] == "| small | mean | test_id, greedy | 50.0 → 65.0 | **+15.0** [+2.6, +27.4] |"
