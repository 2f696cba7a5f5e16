"""Whether bench/gains.py reads runs, keeps names apart, and counts what is gained."""

import importlib.util
import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from megatron_empg.common.jsonl import append_line
from megatron_empg.run.folder import RunFolder, versions
from tests.support.table_runs import write_run

ROOT = Path(__file__).parents[2]
SOKOBAN = ROOT / "recipes/sokoban_miniature.yaml"
POLICY = ROOT / "recipes/sokoban_miniature/policy"
HERE = f"model.path={POLICY}"


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


def setup_of(gains: ModuleType) -> Any:
    return gains.Setup("small", "recipes/small.yaml", ["algorithm.name=grpo"], "0a1b")


def run_of(gains: ModuleType, seed: int, before: float, after: float) -> Any:
    setup = setup_of(gains)
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
        gains.gain_of(setup_of(gains), 1, records, "abc")


def test_seeds_that_have_a_line_are_not_run_again(gains: ModuleType, tmp_path: Path) -> None:
    results = tmp_path / "gains.jsonl"
    assert gains.recorded(results) == []
    for seed in (1, 3):
        append_line(results, asdict(run_of(gains, seed, 0.5, 0.75)))
    found = gains.recorded(results)
    assert gains.missing(setup_of(gains), [1, 2, 3, 4], found) == [2, 4]
    assert gains.missing(replace(setup_of(gains), name="other"), [1, 2], found) == [1, 2]


def test_a_name_stands_for_one_run_but_for_its_seed(gains: ModuleType) -> None:
    found = [run_of(gains, 1, 0.5, 0.75)]
    other = replace(setup_of(gains), identity="2c3d")
    with pytest.raises(ValueError, match=r"--name small stands for recipes/small\.yaml .* 0a1b was another"):
        gains.missing(other, [1], found)


def identity(gains: ModuleType, *overrides: str) -> str:
    return gains.identity_of(gains.as_run(SOKOBAN, overrides))


def test_seed_place_and_machine_make_no_other_run(gains: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(POLICY, tmp_path / "policy")
    alike = (
        ["run.seed=7", "run.folder=runs/other"],
        ["engines.kv_cache_gib=0.5", "actor.tensor_parallel=1", "logging.tensorboard=false"],
        [f"model.path={tmp_path / 'policy'}"],
        ["environment.settings.boxes=1"],
    )
    assert {identity(gains, HERE, *overrides) for overrides in alike} == {identity(gains, HERE)}


def test_what_decides_a_gain_makes_another_run(gains: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(POLICY, tmp_path / "policy")
    weights = tmp_path / "policy/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    others = [
        "algorithm.modulation=empg", "actor.optimizer.lr=1.0e-4", "run.steps=37", "evaluation.questions=100",
        "evaluation.temperature=0.5", "environment.settings.boxes=2", f"model.path={tmp_path / 'policy'}",
    ]  # fmt: skip
    found = {identity(gains, HERE), *(identity(gains, HERE, override) for override in others)}
    assert len(found) == len(others) + 1


def test_no_more_questions_are_asked_than_a_split_has(gains: ModuleType) -> None:
    few = "environment.settings.test_rooms=30"
    assert gains.as_run(SOKOBAN, [HERE]).evaluation.questions == 200
    assert gains.as_run(SOKOBAN, [HERE, few]).evaluation.questions == 30
    assert gains.as_run(SOKOBAN, [HERE, few, "evaluation.questions=20"]).evaluation.questions == 20


def test_what_cannot_be_measured_is_refused_before_training(
    gains: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    absent = f"environment={{name: alfworld, settings: {{data: {tmp_path}}}}}"
    for word, said in (
        ("evaluation.questions=0", "evaluation.questions is 0, and the splits ['test_id'] have [1000] tasks"),
        (absent, "environment.settings: alfworld data"),
        ("algorithm.nme=dapo", "algorithm"),
    ):
        with pytest.raises(SystemExit) as ended:
            gains.main([str(SOKOBAN), HERE, word, f"--results={tmp_path / 'gains.jsonl'}"])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gains.main([str(SOKOBAN), "--seeds", "1,x"])
    assert "'1,x' are no whole numbers" in capsys.readouterr().err


def test_of_a_finished_run_its_line_is_kept(gains: ModuleType, tmp_path: Path) -> None:
    recipe = gains.as_run(SOKOBAN, [HERE])
    figures = {"test_id/sampled": 0.5, "test_id/greedy": 0.75}
    folder = write_run(tmp_path / "run", recipe, figures, questions=200)
    gains.keep_line(setup_of(gains), 4, folder, tmp_path / "gains.jsonl")
    [gain] = gains.recorded(tmp_path / "gains.jsonl")
    assert (gain.seed, gain.identity, gain.steps, gain.after) == (4, "0a1b", recipe.run.steps, figures)
    assert gain.commit == (versions()["commit"] or "of no repository")
    assert not folder.exists()


def test_a_line_has_the_code_of_every_start(gains: ModuleType, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    starts = [{"commit": commit} for commit in ("abc", "abc", "def", None)]
    folder.versions.write_text(json.dumps({"starts": starts}), encoding="utf-8")
    assert gains.commits_of(folder) == "abc, def, of no repository"


def test_a_run_that_ends_before_its_last_step_has_no_line(gains: ModuleType, tmp_path: Path) -> None:
    recipe = gains.as_run(SOKOBAN, [HERE])
    setup = gains.Setup("small", str(SOKOBAN), [f"model.path={tmp_path / 'absent'}"], "0a1b")
    assert not gains.train(setup, recipe, 1, tmp_path / "runs", tmp_path / "gains.jsonl")
    assert gains.recorded(tmp_path / "gains.jsonl") == []


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
