"""tools/same_metrics.py tells two runs apart by what they learned, and not by how long it took."""

import json
import subprocess
import sys
from pathlib import Path

from same_metrics import difference

ROOT = Path(__file__).resolve().parents[2]

LINES = [{"step": 1, "policy/loss": 0.1, "time/step": 3.0}, {"step": 2, "policy/loss": 0.2, "time/step": 4.0}]


def test_times_are_not_compared() -> None:
    slower = [{**line, "time/step": 9.0} for line in LINES]
    assert difference(LINES, slower) is None


def test_the_first_metric_that_differs_in_its_last_bit_is_named() -> None:
    other = [LINES[0], {**LINES[1], "policy/loss": 0.2 + 2**-54}]
    assert other[1]["policy/loss"] != 0.2
    said = difference(LINES, other)
    assert said == "step 2: policy/loss is 0.2 in one run and 0.20000000000000007 in the other"


def test_a_metric_or_a_step_that_only_one_run_has_is_a_difference() -> None:
    assert difference(LINES, LINES[:1]) == "one run has 2 lines of metrics, the other 1"
    more = [LINES[0], {**LINES[1], "train/reward": 0.0}]
    assert difference(LINES, more) == "step 2: train/reward is None in one run and 0.0 in the other"


def test_a_folder_without_metrics_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINES[0]) + "\n", encoding="utf-8")
    words = [sys.executable, "tools/same_metrics.py", str(tmp_path)]
    same = subprocess.run([*words, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert same.returncode == 0, same.stderr
    missing = subprocess.run([*words, "/nowhere"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (missing.returncode, "is not there" in missing.stderr) == (1, True)
