"""`empg evaluate` as a user types it: two policies, one of them a Megatron checkpoint, on real engines."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.evaluate.errors import EvaluationError
from megatron_empg.evaluate.options import EvaluationOptions
from megatron_empg.evaluate.run import EvaluationRun

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "recipes/miniature/policy"
QUESTIONS, SAMPLES = 4, 2
# The rehearsals of recipes evaluate on real engines too, and unit tests go through the rest.
pytestmark = pytest.mark.slow
OVERRIDES = ("engines.kv_cache_gib=0.125", "rollout.max_turn_tokens=24", "environment.max_turns=4")


@dataclass
class Said:
    """What a command printed, and the document that it wrote."""

    status: int
    output: str
    document: dict[str, Any]


def evaluate(folder: Path, *words: str) -> Said:
    path = folder / "out.json"
    command = [
        *(sys.executable, "-m", "megatron_empg.cli", "evaluate", "recipes/quickstart.yaml"),
        *OVERRIDES,
        *("--questions", str(QUESTIONS), "--samples", str(SAMPLES), "--seed", "3", "--json", str(path), *words),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, timeout=280, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return Said(done.returncode, done.stdout, document)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a Megatron checkpoint of other weights: the shipped policy's, its last norm turned around."""
    from safetensors.torch import load_file, save_file

    from megatron_empg.weights.checkpoints import conversion

    found = tmp_path_factory.mktemp("evaluate")
    if not (POLICY / "model.safetensors").exists():
        pytest.skip("the miniature's policy is not here")
    other = found / "other"
    other.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((POLICY / name).read_bytes())
    tensors = load_file(POLICY / "model.safetensors")
    tensors["model.norm.weight"] = -tensors["model.norm.weight"]
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    conversion.to_megatron(other, found / "megatron")
    return found


@pytest.fixture(scope="module")
def first(folder: Path) -> Said:
    return evaluate(folder, "--model", str(POLICY), "--model", str(folder / "megatron"))


def test_every_outcome_is_in_the_document(first: Said) -> None:
    assert first.status == 0, first.output
    found = first.document
    assert (found["format"], found["version"], found["seed"]) == ("megatron_empg evaluation", 1, 3)
    assert (found["questions"], found["samples"], found["splits"]) == (QUESTIONS, SAMPLES, ["test_id", "test_ood"])
    assert found["recipe"]["rollout"]["max_turn_tokens"] == 24
    assert [policy["label"] for policy in found["policies"]] == ["policy", "megatron"]
    for policy in found["policies"]:
        assert set(policy["fingerprint"]) == {"config", "tokenizer", "weights"}
        assert len(policy["outcomes"]) == 2 * QUESTIONS * (SAMPLES + 1)
        assert [outcome for outcome in policy["outcomes"] if outcome["end"] == "error"] == []
        assert all(outcome["hops"] in (1, 2, 3, 4) for outcome in policy["outcomes"])
        assert all(0 < outcome["turns"] <= 4 and outcome["tokens"] > 0 for outcome in policy["outcomes"])
    ours, theirs = (policy["outcomes"] for policy in found["policies"])
    asked = [(one["split"], one["decoding"], one["id"], one["sample"]) for one in ours]
    assert asked == [(one["split"], one["decoding"], one["id"], one["sample"]) for one in theirs]


def test_policies_are_told_apart_and_compared(first: Said) -> None:
    before, after = (policy["outcomes"] for policy in first.document["policies"])
    assert sum(one["success"] for one in after) == 0, "its weights are turned around"
    assert [one["tokens"] for one in before] != [one["tokens"] for one in after]
    compared = {(one["split"], one["decoding"]): one for one in first.document["comparisons"]}
    assert set(compared) == {
        (split, how) for split in ("test_id", "test_ood", "all") for how in ("sampled", "greedy")
    }
    won = sum(one["success"] for one in before if one["decoding"] == "greedy")
    greedy = compared["all", "greedy"]
    assert greedy["difference"] == -won / (2 * QUESTIONS)
    assert greedy["first_better"] == won
    assert greedy["p_value"] == min(1.0, 2 / 2**won)
    assert compared["all", "sampled"]["p_value"] is None


def test_results_tables_and_comparisons_are_printed(first: Said) -> None:
    print(first.output)
    lines = first.output.splitlines()
    results = [line for line in lines if f" of {QUESTIONS} questions (" in line]
    assert len(results) == 2 * 2 * 2, "policies x splits x decodings"
    assert results[0].startswith("policy, test_id sampled: ")
    assert "converting it to" in first.output
    assert "pass@2 in %, sampled at temperature 1 (intervals of 95%)" in lines
    assert any(line.startswith("megatron against policy, all splits greedy: ") for line in lines)


def test_a_finished_evaluation_is_shown_again_without_an_engine(first: Said, folder: Path) -> None:
    again = evaluate(
        folder, "--markdown", "--model", str(POLICY), "--model", str(folder / "megatron"), "engines.count=99"
    )
    assert again.status == 0, again.output
    assert again.document["policies"] == first.document["policies"]
    assert "converting" not in again.output
    assert "| policy | ID avg |" in again.output
    assert "| questions | 4 |" in again.output


def test_another_evaluation_is_refused_by_name(first: Said, folder: Path) -> None:
    """In this process, since it ends before anything is started."""
    before = (folder / "out.outcomes.jsonl").read_bytes()
    options = EvaluationOptions((POLICY,), temperature=0.5, json_path=folder / "out.json")
    with (
        pytest.raises(EvaluationError) as refused,
        EvaluationRun(ROOT / "recipes/quickstart.yaml", [*OVERRIDES, "run.seed=4"], options),
    ):
        pass
    assert "evaluation.temperature was 1.0, is 0.5" in str(refused.value)
    assert "run.seed was 3, is 4" in str(refused.value)
    assert "max_turn_tokens" not in str(refused.value)
    assert (folder / "out.outcomes.jsonl").read_bytes() == before
