"""Whole runs: the quickstart learns, and its control does not (`make test-slow`, ten minutes on two cores)."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_empg.trainer.jsonl import read_lines

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12


def _change_in_success(folder: Path, *overrides: str) -> dict[str, float]:
    """Points gained on 300 fixed questions of each split by `STEPS` steps of the quickstart."""
    command = [sys.executable, "-m", "megatron_empg.cli", "train", "recipes/quickstart.yaml"]
    settings = [f"run.folder={folder}", f"run.steps={STEPS}", "evaluation.questions=300", "evaluation.every=0"]
    subprocess.run([*command, *settings, *overrides], cwd=ROOT, check=True, timeout=1500)
    evaluated = [line for line in read_lines(folder / "metrics.jsonl") if "eval/test_id/sampled" in line]
    names = [f"{split}/{how}" for split in ("test_id", "test_ood") for how in ("sampled", "greedy")]
    return {name: 100 * (evaluated[-1][f"eval/{name}"] - evaluated[0][f"eval/{name}"]) for name in names}


@pytest.mark.slow
def test_the_quickstart_learns(tmp_path: Path) -> None:
    change = _change_in_success(tmp_path / "run")
    assert change["test_id/sampled"] > 15
    assert change["test_ood/sampled"] > 15
    assert change["test_id/greedy"] > -6


@pytest.mark.slow
def test_with_shuffled_rewards_nothing_is_learnt(tmp_path: Path) -> None:
    change = _change_in_success(tmp_path / "run", "algorithm.shuffle_rewards=true")
    # The standard error of a difference of two shares of 300 is 4 points.
    assert change["test_id/sampled"] < 10
    assert change["test_ood/sampled"] < 10
