"""What a study's YAML may say, and what is said of its faults."""

from pathlib import Path
from typing import Any

import pytest

from megatron_empg.study.config import load_study
from megatron_empg.study.errors import StudyError
from tests.support.recipes import ROOT
from tests.support.studies import small_study, study_keys, write_study


def test_a_study_is_read_as_it_stands(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    assert study.methods["empg"].base == "plain"
    assert (study.choose_on, study.attempts, study.quick) == ("train", 2, None)
    assert study.methods_of("quickstart") == ["plain", "empg"]


def test_a_task_may_have_a_part_of_the_methods_in_the_studys_order(tmp_path: Path) -> None:
    tasks = study_keys(tmp_path)["tasks"]
    methods = {name: {} for name in ("a", "b", "c")}
    tasks["quickstart"]["methods"] = ["c", "a"]
    assert small_study(tmp_path, tasks=tasks, methods=methods).methods_of("quickstart") == ["a", "c"]


def test_pairs_are_of_methods_that_the_task_has(tmp_path: Path) -> None:
    methods = {"plain": {}, "a": {"base": "plain"}, "b": {"base": "plain"}}
    tasks = study_keys(tmp_path)["tasks"]
    pairs = [["a", "b"]]
    study = small_study(tmp_path, methods=methods, tasks=tasks, pairs=pairs)
    assert study.pairs_of("quickstart") == [("a", "plain"), ("b", "plain"), ("a", "b")]
    tasks["quickstart"]["methods"] = ["plain", "a"]
    study = small_study(tmp_path, methods=methods, tasks=tasks, pairs=pairs)
    assert study.pairs_of("quickstart") == [("a", "plain")]


def task(**changed: Any) -> dict[str, Any]:
    return {"quickstart": {"recipe": "recipes/quickstart.yaml", **changed}}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"choose_on": "test_id"}, "choose_on is test_id, a test split"),
        ({"choose_on": "dev"}, "choose_on: Input should be"),
        ({"seeds": []}, "seeds: List should have at least 1 item"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]; give each once"),
        ({"seeds": ["1"]}, "seeds.0: Input should be a valid integer; got '1'"),
        ({"series": ["dev/sampled"]}, "series.0: String should match"),
        ({"results": "docs/study/a.json"}, "name it NAME.jsonl"),
        ({"sedes": [1]}, "sedes: unknown key; did you mean 'seeds'?"),
        ({"tasks": task(overides=[])}, "tasks.quickstart.overides: unknown key; did you mean 'overrides'?"),
        ({"tasks": task(methods=["emgp"])}, "tasks.quickstart.methods is 'emgp'; did you mean 'empg'?"),
        ({"tasks": {"a-b": {"recipe": "x"}}}, "the name 'a-b' is a part of file names"),
        ({"tasks": {"a": {}}}, "tasks.a.recipe: missing; give it a value"),
        ({"methods": {"a": {"base": "b"}}}, "methods.a.base is 'b'; the study has: a"),
        ({"pairs": [["empg", "x"]]}, "pairs is 'x'"),
        ({"pairs": [["empg", "plain"]]}, "pairs has [empg, plain], which is compared already"),
        ({"pairs": [["empg"]]}, "pairs.0: List should have at least 2 items"),
        ({"methods": {"a": {"base": "a"}}}, "methods.a.base is itself"),
        ({"quick": {"tasks": ["x"], "methods": ["empg"], "seeds": [1]}}, "quick.tasks is 'x'"),
        ({"quick": {"tasks": ["quickstart"], "methods": ["x"], "seeds": [1]}}, "quick.methods is 'x'"),
        ({"quick": {"tasks": ["quickstart"], "methods": ["empg"], "seeds": [3]}}, "quick.seeds is [3]"),
    ],
)
def test_a_fault_is_named_by_its_key(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError) as refused:
        load_study(write_study(tmp_path, **changed))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "cannot read study"), ("- a", "holds list, not keys"), (None, "No such file")]
)
def test_what_is_no_study_is_refused(text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match=said):
        load_study(path)


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_study_can_be_read_and_is_no_larger_than_its_page_says(path: Path) -> None:
    study = load_study(path)
    runs = sum(len(study.methods_of(name)) for name in study.tasks) * len(study.seeds)
    assert runs <= 80
    assert study.quick is not None
    assert len(study.quick.tasks) * len(study.quick.methods) * len(study.quick.seeds) <= 8
    overrides = [override for method in study.methods.values() for override in method.overrides]
    modulates = any(override.startswith("algorithm.modulation") for override in overrides)
    reversed_ones = [name for name in study.methods if name.endswith("_reversed")]
    assert reversed_ones or not modulates, "a mechanism is told from a perturbation by its control alone"
