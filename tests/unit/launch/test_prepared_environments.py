"""What a job of ALFWorld, WebShop or ScienceWorld is given of a prepared folder, and told where there is none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.environments.alfworld.manifest import Game, GamesManifest, write_manifest
from megatron_empg.launch.prepared_data import DataChoice, data_overrides, what_is_trained_on
from megatron_empg.prepare.manifest import (
    ALFWORLD,
    SCIENCEWORLD,
    WEBSHOP,
    PreparedCatalogue,
    PreparedFile,
    PreparedFolder,
    PreparedGames,
    PreparedModel,
    write_prepared,
)
from megatron_empg.recipe import Recipe, RecipeError, load_recipe

RECIPE = Path("recipes/deepsearch_7b.yaml")
MODEL = "Qwen2.5-7B-Instruct"
ENVIRONMENTS = {"alfworld": ALFWORLD, "webshop": WEBSHOP, "scienceworld": SCIENCEWORLD}


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)


def recipe_of(environment: str, *words: str, **settings: Any) -> Recipe:
    """A shipped recipe, of another environment."""
    given = json.dumps(settings)
    return load_recipe(RECIPE, [f"environment.name={environment}", f"environment.settings={given}", *words])


def noted(root: Path, name: str) -> PreparedFile:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(name.encode())
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return PreparedFile(path=name, size=len(name), sha256=sha256, origin="hub:x/y", checked="hub")


def folder_of(root: Path, environment: str, **parts: Any) -> Path:
    """A prepared one, with the model; its name has what YAML and a shell would stumble over."""
    folder = root / "my data: #1 'x'"
    weights = noted(folder, f"model/{MODEL}/config.json")
    models = {MODEL: PreparedModel(path=f"model/{MODEL}", origin="hub:x/y", files=[weights])}
    write_prepared(folder, PreparedFolder(preparation=ENVIRONMENTS[environment], models=models, **parts))
    return folder


def with_games(root: Path, generated: bool = False) -> Path:
    game = Game("train/look-1/trial", "look_at_obj_in_light", "look", "0")
    (root / "my data: #1 'x'/games").mkdir(parents=True)
    write_manifest(
        root / "my data: #1 'x'/games", GamesManifest(generated, {"train": (game,), "test_id": (), "test_ood": ()})
    )
    games = PreparedGames(path="games", manifest="0", counts={"train": 1}, generated=1 if generated else None)
    return folder_of(root, "alfworld", games=games)


def with_products(root: Path) -> Path:
    folder = root / "my data: #1 'x'"
    files = {name: noted(folder, f"products/{name}.json") for name in ("products", "attributes", "instructions")}
    return folder_of(root, "webshop", files=files)


def with_nothing_else(root: Path) -> Path:
    return folder_of(root, "scienceworld")


def resolved(recipe: Recipe, folder: Path, *words: str, **settings: Any) -> Recipe:
    given = data_overrides(recipe, words, DataChoice(folder))
    return recipe_of(recipe.environment.name, *given, *words, **settings)


# --- what is prepared becomes settings -------------------------------------------------------------------------


@pytest.mark.parametrize(("generated", "called"), [
    (False, "trains on ALFWorld games (train 1, test_id 0, test_ood 0)"),
    (True, "trains on ALFWorld engine, locally generated games (train 1, "),
])  # fmt: skip
def test_prepared_games_are_the_data_of_alfworld_and_named_as_they_are(
    tmp_path: Path, generated: bool, called: str
) -> None:
    folder = with_games(tmp_path, generated)
    found = resolved(recipe_of("alfworld"), folder)
    assert found.environment.settings["data"] == str(folder / "games")
    assert found.model.path == folder / "model" / MODEL
    assert what_is_trained_on(found)[0].startswith(called)


def test_prepared_products_are_the_files_of_webshop(tmp_path: Path) -> None:
    folder = with_products(tmp_path)
    found = resolved(recipe_of("webshop", show_attributes=True), folder, show_attributes=True)
    files = {name: str(folder / f"products/{name}.json") for name in ("products", "attributes", "instructions")}
    assert found.environment.settings == files | {"show_attributes": True}
    assert found.model.path == folder / "model" / MODEL
    assert "substitute title score" in what_is_trained_on(found)[0]


def test_a_prepared_catalogue_is_made_by_the_run(tmp_path: Path) -> None:
    """What the recipe says of files of products is taken back: there are none."""
    folder = folder_of(tmp_path, "webshop", catalogue=PreparedCatalogue(products=1500, seed=0))
    found = resolved(recipe_of("webshop", goals="synthetic"), folder, goals="synthetic")
    assert found.environment.settings == {"generated_products": 1500, "generated_seed": 0, "goals": None}
    assert "generated catalogue" in what_is_trained_on(found)[0]


def test_scienceworld_is_given_a_model_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "scienceworld")
    found = resolved(recipe_of("scienceworld", splits="epo"), folder, splits="epo")
    assert found.environment.settings == {"splits": "epo"}
    assert found.model.path == folder / "model" / MODEL


MAKERS = {"alfworld": with_games, "webshop": with_products, "scienceworld": with_nothing_else}


@pytest.mark.parametrize("environment", sorted(ENVIRONMENTS))
def test_the_users_model_holds_over_the_prepared_one(tmp_path: Path, environment: str) -> None:
    folder = MAKERS[environment](tmp_path)
    found = resolved(recipe_of(environment), folder, "model.path=/my/model")
    assert str(found.model.path) == "/my/model"


@pytest.mark.parametrize("environment", sorted(ENVIRONMENTS))
def test_a_folder_in_the_usual_place_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    folder = MAKERS[environment](tmp_path)
    wanted = recipe_of(environment)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ENVIRONMENTS[environment]).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    given = data_overrides(wanted, [], DataChoice())
    assert any(word.startswith("model.path=") for word in given)


# --- who needs none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ("alfworld", "environment.settings.data=/my/games"),
        ("webshop", "environment.settings.products=/my/items.json"),
        ("webshop", "environment.settings.server=http://shop:3000"),
        ("webshop", "environment.settings.generated_products=200"),
    ],
)
def test_who_brings_data_needs_no_preparation(environment: str, word: str) -> None:
    wanted = recipe_of(environment, word)
    assert data_overrides(wanted, [word], DataChoice(Path("/none"))) == []
    assert data_overrides(wanted, [], DataChoice(Path("/none"))) == [], "the recipe itself may say so too"


def test_alfworlds_own_variable_names_games_unless_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", "/my/games")
    assert data_overrides(recipe_of("alfworld"), [], DataChoice()) == []
    folder = with_games(tmp_path)
    assert resolved(recipe_of("alfworld"), folder).environment.settings["data"] == str(folder / "games")


def test_games_in_the_usual_place_go_before_alfworlds_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", "/my/games")
    folder = with_games(tmp_path)
    wanted = recipe_of("alfworld")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/alfworld").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    given = data_overrides(wanted, [], DataChoice())
    data = str(tmp_path / "data/alfworld/games")
    assert f"environment.settings.data={json.dumps(data)}" in given
    monkeypatch.undo()
    monkeypatch.setenv("ALFWORLD_DATA", "/my/games")
    notes = what_is_trained_on(recipe_of("alfworld", *given))
    assert notes[0].endswith(f" of {data}")
    assert notes[1] == "ALFWORLD_DATA=/my/games is not used"


def test_a_model_alone_in_the_usual_place_leaves_the_games_to_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", "/my/games")
    wanted = recipe_of("alfworld")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/alfworld").symlink_to(folder_of(tmp_path, "alfworld"))
    monkeypatch.chdir(tmp_path)
    assert data_overrides(wanted, [], DataChoice()) == []


@pytest.mark.parametrize(("asked", "word"), [(128, ["evaluation.questions=60"]), (60, []), (50, [])])
def test_no_more_questions_are_asked_than_a_test_split_has(tmp_path: Path, asked: int, word: list[str]) -> None:
    games = [Game(f"{n}/trial", "look_at_obj_in_light", "look", "0") for n in range(70)]
    counts = {"train": 70, "test_id": 60, "test_ood": 65}
    write_manifest(tmp_path, GamesManifest(True, {split: tuple(games[:n]) for split, n in counts.items()}))  # type: ignore[misc]
    words = [f"evaluation.questions={asked}", f"environment.settings.data={tmp_path}"]
    assert data_overrides(recipe_of("alfworld", *words), words[1:], DataChoice()) == word
    notes = what_is_trained_on(recipe_of("alfworld", *words, *word))
    said = "evaluation.questions is 60: its smallest test split has no more"
    assert (said in notes) == (asked >= 60)


def test_where_the_model_is_there_scienceworld_needs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe_of("scienceworld", f"model.path={tmp_path}")
    monkeypatch.chdir(tmp_path)
    assert data_overrides(wanted, [], DataChoice()) == []
    assert data_overrides(recipe_of_here("scienceworld"), ["model.path=/mine"], DataChoice()) == []


def recipe_of_here(environment: str) -> Recipe:
    root = Path(__file__).parents[3]
    return load_recipe(root / RECIPE, [f"environment.name={environment}", "environment.settings={}"])


def test_other_environments_need_nothing() -> None:
    assert data_overrides(recipe_of("sokoban"), [], DataChoice(Path("/none"))) == []
    assert what_is_trained_on(recipe_of("sokoban")) == []


# --- what is missing is named with the command -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "way_out"),
    [
        ("alfworld", "--generated 360"),
        ("webshop", "EMPG_MINIATURE=1"),
        ("scienceworld", "EMPG_MODEL"),
    ],
)
def test_nothing_prepared_is_an_error_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: str, way_out: str
) -> None:
    wanted = recipe_of(environment)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=f"nothing to train on: data/{environment} is not prepared") as refused:
        data_overrides(wanted, [], DataChoice())
    said = str(refused.value)
    assert f"bash slurm/prepare.sh {environment} data/{environment} --model Qwen/{MODEL}" in said
    assert way_out in said
    with pytest.raises(RecipeError, match=r"EMPG_DATA is empty, which has no prepared\.json"):
        data_overrides(wanted, [], DataChoice(Path("empty")))


def test_games_in_the_usual_place_that_were_not_prepared_are_named_with_their_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe_of("alfworld")
    monkeypatch.chdir(tmp_path)
    folder = Path("data/alfworld")
    folder.mkdir(parents=True)
    game = Game("train/look-1/trial", "look_at_obj_in_light", "look", "0")
    write_manifest(folder, GamesManifest(True, {"train": (game,), "test_id": (), "test_ood": ()}))
    with pytest.raises(RecipeError, match=r"holds games .* give environment\.settings\.data=data/alfworld"):
        data_overrides(wanted, [], DataChoice())
    assert data_overrides(wanted, ["environment.settings.data=data/alfworld"], DataChoice()) == []


def test_the_miniature_is_a_generated_catalogue_and_alfworld_has_none() -> None:
    assert data_overrides(recipe_of("webshop"), [], DataChoice(miniature=True)) == []
    assert data_overrides(recipe_of("scienceworld"), [], DataChoice(miniature=True)) == []
    with pytest.raises(RecipeError, match=r"EMPG_MINIATURE is 1: alfworld has none; .*--generated 36"):
        data_overrides(recipe_of("alfworld"), [], DataChoice(miniature=True))


def test_games_that_were_not_unpacked_or_are_gone_are_named(tmp_path: Path) -> None:
    unfinished = folder_of(tmp_path / "a", "alfworld", files={"game.tw-pddl": noted(tmp_path, "a.zip")})
    with pytest.raises(RecipeError, match=r"is prepared but for games: go on by `bash slurm/prepare\.sh alfworld"):
        data_overrides(recipe_of("alfworld"), [], DataChoice(unfinished))
    folder = with_games(tmp_path / "b")
    (folder / "games/manifest.json").unlink()
    with pytest.raises(
        RecipeError, match=r"games/manifest\.json is gone: `bash slurm/prepare\.sh alfworld .*again"
    ):
        data_overrides(recipe_of("alfworld"), [], DataChoice(folder))


def test_products_of_another_size_are_named(tmp_path: Path) -> None:
    folder = with_products(tmp_path)
    (folder / "products/attributes.json").write_bytes(b"{}")
    with pytest.raises(RecipeError, match=r"attributes\.json is gone or has another size"):
        data_overrides(recipe_of("webshop"), [], DataChoice(folder))


def test_a_folder_prepared_for_another_environment_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="of the preparation 'webshop', not of 'alfworld'"):
        data_overrides(recipe_of("alfworld"), [], DataChoice(with_products(tmp_path)))
