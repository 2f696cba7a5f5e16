"""Small studies, and results of runs that a test makes up."""

from pathlib import Path
from typing import Any

import yaml

from megatron_empg.study.config import Study, load_study
from megatron_empg.study.results import RunResult
from tests.support.recipes import ROOT

POLICY = f"model.path={ROOT / 'recipes/miniature/policy'}"
CORPUS = f"environment.settings.corpus={ROOT / 'recipes/miniature/corpus.jsonl'}"
SERIES = "test_id/sampled"


def study_keys(folder: Path, **changed: Any) -> dict[str, Any]:
    """The keys of a study of two methods and two seeds on the quickstart, with these instead of its own."""
    short = [POLICY, "run.steps=2", "evaluation.questions=4", "evaluation.greedy=false"]
    keys: dict[str, Any] = {
        "stage": "A study that a test makes up.",
        "results": str(folder / "small.jsonl"),
        "tasks": {"quickstart": {"recipe": str(ROOT / "recipes/quickstart.yaml"), "overrides": short}},
        "methods": {
            "plain": {"overrides": ["algorithm.modulation=none"]},
            "empg": {"base": "plain", "overrides": ["algorithm.modulation=empg"]},
        },
        "seeds": [1, 2],
        "series": [SERIES],
    }
    return keys | changed


def write_study(folder: Path, **changed: Any) -> Path:
    """The YAML of `study_keys`."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(study_keys(folder, **changed), sort_keys=False), encoding="utf-8")
    return path


def small_study(folder: Path, **changed: Any) -> Study:
    """The same, read."""
    return load_study(write_study(folder, **changed))


def result(method: str, seed: int, answered: str, **changed: Any) -> RunResult:
    """A finished run that answered these questions behind its last step, and every second one before."""
    before = ("01" * len(answered))[: len(answered)]
    keys: dict[str, Any] = {
        "task": "quickstart",
        "method": method,
        "seed": seed,
        "identity": f"of {method}",
        "ended": "finished",
        "before": {SERIES: before.count("1") / len(before)},
        "after": {SERIES: answered.count("1") / len(answered)},
        "answered_before": {SERIES: before},
        "answered_after": {SERIES: answered},
        "steps": 2,
        "episodes": 256,
        "seconds": 120,
        "diagnostics": {"policy/entropy": 0.25},
        "curve": [0.4, 0.5],
        "commit": "abc",
    }
    return RunResult(**(keys | changed))
