"""What a job trains on: what was prepared, the user's own, or the miniature where it is asked for."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.environments.base import SPLITS
from megatron_empg.launch.prepared_data import (
    DataChoice,
    data_overrides,
    overrides_of_prepared,
    what_is_trained_on,
)
from megatron_empg.prepare.manifest import (
    PreparedFile,
    PreparedFolder,
    PreparedIndex,
    PreparedModel,
    PreparedQuestions,
    write_prepared,
)
from megatron_empg.recipe import Recipe, RecipeError, load_recipe

RECIPE = "recipes/deepsearch_7b.yaml"
MODEL = "Qwen2.5-7B-Instruct"


def file(root: Path, name: str) -> PreparedFile:
    content = name.encode()
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
    return PreparedFile(
        path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest(), origin="hub:x/y", checked="hub"
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared one, whose name has what YAML and a shell would stumble over."""
    root = tmp_path / "my data: #1 'x'"
    questions = {
        "train": [PreparedQuestions(dataset="hotpotqa", file=file(root, "questions/h.json"), weight=2.0)],
        "test_id": [PreparedQuestions(dataset="2wikimultihopqa", file=file(root, "questions/w.json"), limit=7,
                                      aliases=file(root, "questions/a.json"))],
        "test_ood": [PreparedQuestions(dataset="musique", file=file(root, "questions/m.jsonl"))],
    }  # fmt: skip
    (root / "index").mkdir()
    weights = [file(root, f"model/{MODEL}/c.json")]
    write_prepared(root, PreparedFolder(
        models={MODEL: PreparedModel(path=f"model/{MODEL}", origin="hub:x/y", files=weights)},
        questions=questions, corpus=file(root, "corpus/c.jsonl"),
        index=PreparedIndex(path="index", size=0, of_sha256="0"),
    ))  # fmt: skip
    return root


def recipe(*words: str) -> Recipe:
    return load_recipe(RECIPE, list(words))


def test_what_is_prepared_becomes_the_recipes_settings(folder: Path) -> None:
    given = overrides_of_prepared(folder, recipe())
    resolved = recipe(*given)
    assert resolved.model.path == folder / "model" / MODEL
    settings = resolved.environment.settings
    assert settings["index"] == str(folder / "index")
    assert settings["questions"] == {
        "train": [{"dataset": "hotpotqa", "path": str(folder / "questions/h.json"), "weight": 2.0}],
        "test_id": [
            {
                "dataset": "2wikimultihopqa",
                "path": str(folder / "questions/w.json"),
                "limit": 7,
                "aliases": str(folder / "questions/a.json"),
            }
        ],
        "test_ood": [{"dataset": "musique", "path": str(folder / "questions/m.jsonl")}],
    }
    assert set(settings["questions"]) == set(SPLITS)
    assert settings["prompt"] == "tools", "what the recipe says besides stays"
    (note,) = what_is_trained_on(resolved)
    assert note.startswith("trains on published questions (files: train 1, test_id 1, test_ood 1)")


def test_a_recipe_that_names_the_miniature_trains_on_what_was_prepared(folder: Path) -> None:
    named = "environment.settings.corpus=recipes/miniature/corpus.jsonl"
    given = data_overrides(recipe(named), [], DataChoice(folder))
    assert recipe(named, *given).environment.settings["corpus"] is None


def test_the_users_words_hold_over_what_is_prepared(folder: Path) -> None:
    words = ["model.path=/my/model", "environment.settings.prompt=none"]
    given = data_overrides(recipe(*words), words, DataChoice(folder))
    resolved = recipe(*given, *words)
    assert str(resolved.model.path) == "/my/model"
    assert resolved.environment.settings["prompt"] == "none"


@pytest.mark.parametrize(
    "word",
    [
        "environment.settings.corpus=mine.jsonl", "environment.settings.index=mine",
        "environment.settings.questions={train: []}", "environment.settings.questions.train=[]",
    ],
)  # fmt: skip
def test_who_brings_data_needs_no_preparation(word: str) -> None:
    assert data_overrides(recipe(word), [word], DataChoice(Path("/none"))) == []


def test_the_miniature_is_trained_on_where_it_is_asked_for_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe()
    assert data_overrides(wanted, [], DataChoice(miniature=True)) == []
    assert "trains on the miniature corpus" in what_is_trained_on(wanted)[0]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="nothing to train on: data/deepsearch is not prepared") as refused:
        data_overrides(wanted, [], DataChoice())
    said = str(refused.value)
    assert f"bash slurm/prepare.sh deepsearch data/deepsearch --model Qwen/{MODEL}" in said
    assert "EMPG_MINIATURE=1" in said


def test_data_in_the_usual_place_is_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = recipe()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/deepsearch").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    assert data_overrides(wanted, [], DataChoice())


def _remove_index(root: Path) -> None:
    (root / "index").rmdir()


def _change_a_file(root: Path) -> None:
    (root / "questions/m.jsonl").write_bytes(b"")


def _remove_weights(root: Path) -> None:
    (root / f"model/{MODEL}/c.json").unlink()


def _break_the_manifest(root: Path) -> None:
    (root / "prepared.json").write_text("{", encoding="utf-8")


def _leave_the_index_out(root: Path) -> None:
    write_prepared(root, PreparedFolder(questions={"train": []}, corpus=None))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_remove_index, "the index .* is gone"),
        (_change_a_file, r"questions/m.jsonl is gone or has another size"),
        (_remove_weights, r"c.json is gone or has another size"),
        (_break_the_manifest, "prepared.json is broken"),
        (_leave_the_index_out, "is prepared but for corpus, index"),
    ],
)
def test_what_is_not_there_any_more_is_named_with_the_command(folder: Path, harm: Any, said: str) -> None:
    harm(folder)
    with pytest.raises(RecipeError, match=said) as refused:
        overrides_of_prepared(folder, recipe())
    assert "slurm/prepare.sh" in str(refused.value)


def test_a_model_that_was_not_prepared_is_named_with_the_command(folder: Path) -> None:
    other = load_recipe("recipes/deepsearch_32b.yaml")
    with pytest.raises(RecipeError, match=rf"it has: {MODEL}") as refused:
        overrides_of_prepared(folder, other)
    assert "--model Qwen/Qwen2.5-32B-Instruct --only model" in str(refused.value)
    assert not any(word.startswith("model.") for word in overrides_of_prepared(folder, other, wants_model=False))
