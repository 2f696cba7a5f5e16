"""Models that are known before they are downloaded: `empg plan` of cluster recipes, and the way to fetch one."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from megatron_empg.cli import app
from megatron_empg.launch.prepared_data import PREPARATIONS
from megatron_empg.planner.shape import shape_of
from megatron_empg.planner.shards import model_parameters
from megatron_empg.prepare.manifest import PARTS
from megatron_empg.recipe import Recipe, RecipeError, load_recipe
from megatron_empg.recipe.check import check_model
from megatron_empg.recipe.preparation import PREPARATION_OF
from megatron_empg.weights.mapping.known_models import KNOWN, known_model
from megatron_empg.weights.mapping.model_config import ModelConfig

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "tests/unit/weights/configs"
RECIPES = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if "models/" in path.read_text("utf-8")]
"""Those that want a model to be fetched."""


def gpus_of(recipe: Recipe) -> int:
    return recipe.actor.world_size + recipe.engines.count * recipe.engines.tensor_parallel


def plan_of(path: Path, *arguments: str) -> Any:
    recipe = load_recipe(path)
    return CliRunner().invoke(app, ["plan", str(path), "--gpus", str(gpus_of(recipe)), *arguments])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_cluster_recipe_is_planned_from_a_fresh_clone(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is downloaded, and the recipe is the shipped one; relative paths lead nowhere here."""
    monkeypatch.chdir(tmp_path)
    result = plan_of(path, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["recipe"]["fits"]
    folder = load_recipe(path).model.path
    assert found["model"]["shape"].partition("/")[2] == folder.name
    assert found["model"]["note"].startswith(f"{folder} is not there")


def test_the_commands_of_the_readme_plan_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a copy that has the recipes and no models."""
    said = re.findall(r"^empg plan (\S+) --gpus (\d+)", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert said
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    for recipe, gpus in said:
        result = CliRunner().invoke(app, ["plan", recipe, "--gpus", gpus])
        assert result.exit_code == 0, result.output
        plain = " ".join(result.output.split())
        assert "by the published shape of Qwen/" in plain
        assert plain.endswith("The recipe fits.")


def test_every_model_that_a_recipe_wants_is_known() -> None:
    assert RECIPES
    for path in RECIPES:
        folder = Path(yaml.safe_load(path.read_text("utf-8"))["model"]["path"])
        assert known_model(folder) is not None, (
            f"{path.name} names {folder}: put it into weights/mapping/known_models.py"
        )


@pytest.mark.parametrize("model", KNOWN, ids=lambda model: model.hub_id)
def test_shape_and_size_of_a_known_model_agree(model: Any) -> None:
    config = ModelConfig.from_dict(dict(model.shape))
    assert model_parameters(config) * 2 == model.weight_bytes


@pytest.mark.parametrize(
    ("name", "kept"), [("Qwen2.5-32B-Instruct", "qwen2.5-32b"), ("Qwen2.5-7B-Instruct", "qwen2.5-7b")]
)
def test_an_instruct_model_has_the_shape_of_its_base_model(name: str, kept: str) -> None:
    """They differ in what a forward pass is told, not in how large it is."""
    model = known_model(Path("models") / name)
    assert model is not None
    base = json.loads((CONFIGS / f"{kept}.json").read_text("utf-8"))
    told = {"max_position_embeddings", "rms_norm_eps"}
    assert {key: base[key] for key in model.shape if key not in told} == {
        key: value for key, value in model.shape.items() if key not in told
    }


def test_a_folder_that_is_there_is_read_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen2.5-32B-Instruct"
    folder.mkdir()
    with pytest.raises(RecipeError, match=r"cannot read .*config\.json"):
        shape_of(folder)
    shutil.copy(CONFIGS / "qwen2.5-7b.json", folder / "config.json")
    shape = shape_of(folder)
    assert shape.config.hidden_size == 3584
    assert not shape.note


def test_an_unknown_model_that_is_not_there_is_refused_with_the_way_to_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"hf download OWNER/NAME --local-dir .*/Own-3B"):
        shape_of(tmp_path / "Own-3B")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_training_without_the_model_names_the_commands_that_fetch_it(path: Path, tmp_path: Path) -> None:
    """By slurm/prepare.sh with the data of the recipe's own environment; Sokoban needs a model alone."""
    name = load_recipe(path).model.path.name
    recipe = load_recipe(path, [f"model.path={tmp_path / name}"])
    with pytest.raises(RecipeError, match="cannot read") as refused:
        check_model(recipe)
    said = str(refused.value)
    assert f"hf download Qwen/{name} --local-dir {tmp_path / name}" in said
    environment = recipe.environment.name
    if environment == "sokoban":
        assert "prepare.sh" not in said
        return
    preparation = environment.replace("_", "")
    assert f"bash slurm/prepare.sh {preparation} data/{preparation} --model Qwen/{name}`" in said


def test_every_preparation_of_jobs_is_one_of_the_command() -> None:
    assert {name: data.preparation for name, data in PREPARATIONS.items()} == dict(PREPARATION_OF)
    assert set(PREPARATION_OF.values()) == set(PARTS)


def test_a_model_that_nobody_knows_is_not_to_be_prepared(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES[0], [f"model.path={tmp_path / 'Own-3B'}"])
    with pytest.raises(RecipeError, match="hf download OWNER/NAME") as refused:
        check_model(recipe)
    assert "prepare.sh" not in str(refused.value)
