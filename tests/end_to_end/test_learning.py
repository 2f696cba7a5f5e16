"""Whole runs: the quickstart learns, by other algorithms too, and its control does not.

`make test-slow`; a run takes five minutes on two cores that do nothing else.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_empg.common.jsonl import read_lines

ROOT = Path(__file__).resolve().parents[2]
STEPS, QUESTIONS = 12, 300
SAMPLED = ("test_id/sampled", "test_ood/sampled")
ALGORITHMS = {
    "aem": ("algorithm.modulation=aem",),
    "epo": ("algorithm.modulation=none", "algorithm.regularizer=epo"),
    "gigpo": ("algorithm.name=gigpo", "algorithm.modulation=none"),
}
"""What makes another algorithm of the quickstart's, which is EMPG over DAPO; EPO's default is differentiable."""


def _change_in_success(folder: Path, *overrides: str) -> dict[str, float]:
    """Points gained on the same fixed questions of each split by `STEPS` steps of the quickstart."""
    command = [
        sys.executable,
        "-m",
        "megatron_empg.cli",
        "train",
        "recipes/quickstart.yaml",
        f"run.folder={folder}",
    ]
    settings = [f"run.steps={STEPS}", f"evaluation.questions={QUESTIONS}", "evaluation.every=0"]
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
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_algorithm_learns(algorithm: str, tmp_path: Path) -> None:
    """By more than luck; by how much more is not asked, which takes several seeds.

    A share of 300 questions has a standard error of up to 2.9 points, a difference of two 4.1, and the mean of two
    such differences 2.9: a policy that learnt nothing gains 6 points once in fifty runs.
    """
    change = _change_in_success(tmp_path / "run", *ALGORITHMS[algorithm])
    assert sum(change[name] for name in SAMPLED) / len(SAMPLED) > 6
    assert min(change[name] for name in SAMPLED) > -8
    assert change["test_id/greedy"] > -8


@pytest.mark.slow
def test_with_shuffled_rewards_nothing_is_learnt(tmp_path: Path) -> None:
    change = _change_in_success(tmp_path / "run", "algorithm.shuffle_rewards=true")
    # The standard error of a difference of two shares of 300 is 4 points.
    assert change["test_id/sampled"] < 10
    assert change["test_ood/sampled"] < 10
