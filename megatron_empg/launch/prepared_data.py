"""What a cluster job trains on: what slurm/prepare.sh fetched, data of the user's own, or the miniature."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_empg.environments.settings import MANIFEST
from megatron_empg.launch.prepared_settings import (
    AlfWorldData,
    DeepSearchData,
    PreparedData,
    ScienceWorldData,
    WebShopData,
)
from megatron_empg.prepare.errors import PrepareError
from megatron_empg.prepare.manifest import ALFWORLD, NAME, PreparedFolder, PreparedModel, read_prepared
from megatron_empg.recipe import Recipe, RecipeError
from megatron_empg.recipe.preparation import DEFAULT_FOLDER, prepare_command

PREPARATIONS: Mapping[str, PreparedData] = {
    "deep_search": DeepSearchData(),
    "alfworld": AlfWorldData(),
    "webshop": WebShopData(),
    "scienceworld": ScienceWorldData(),
}
"""By environment, what slurm/prepare.sh leaves for it; others need nothing."""
_SETTINGS = "environment.settings."


@dataclass(frozen=True)
class DataChoice:
    """What the user says: a prepared folder (EMPG_DATA), or that the miniature is meant (EMPG_MINIATURE)."""

    folder: Path | None = None
    miniature: bool = False


def data_overrides(recipe: Recipe, words: Sequence[str], choice: DataChoice) -> list[str]:
    """Overrides that go before the user's `words`, which are in `recipe` already. Raises RecipeError."""
    given = _of_data(recipe, words, choice)
    settings = dict(recipe.environment.settings) | _settings_in(given)
    most = most_questions(recipe, settings)
    if most is not None and most < recipe.evaluation.questions:
        given.append(f"evaluation.questions={most}")
    return given


def most_questions(recipe: Recipe, settings: Mapping[str, Any]) -> int | None:
    """How many the data has of every split that is evaluated; None where that is not known or is none."""
    data = PREPARATIONS.get(recipe.environment.name)
    if data is None:
        return None
    counts = data.counts(settings)
    there = [counts[split] for split in recipe.evaluation.splits if split in counts]
    return min(there, default=0) or None


def _settings_in(words: Sequence[str]) -> dict[str, Any]:
    """What overrides of ours say of the environment's settings."""
    found: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key.startswith(_SETTINGS):
            found[key.removeprefix(_SETTINGS)] = json.loads(value)
    return found


def _of_data(recipe: Recipe, words: Sequence[str], choice: DataChoice) -> list[str]:
    data = PREPARATIONS.get(recipe.environment.name)
    if data is None or _has_own_data(data, recipe, words, choice):
        return []
    if choice.miniature:
        if data.no_miniature:
            raise RecipeError(f"EMPG_MINIATURE is 1: {data.no_miniature}")
        return []
    wants_model = not any(word.startswith("model.path=") for word in words)
    folder = choice.folder
    if folder is None:
        folder = DEFAULT_FOLDER / data.preparation
        if not (folder / NAME).exists():
            if not data.needs and (recipe.model.path.exists() or not wants_model):
                return []
            raise _nothing_prepared(data, folder, recipe)
    return overrides_of_prepared(folder, recipe, wants_model=wants_model)


def _has_own_data(data: PreparedData, recipe: Recipe, words: Sequence[str], choice: DataChoice) -> bool:
    """Whether the user, the recipe or, where no folder is named, the machine names data."""
    given = tuple(f"environment.settings.{key}" for key in data.own_data)
    if any(word.startswith(tuple(f"{key}{end}" for key in given for end in "=.")) for word in words):
        return True
    if data.has_own(recipe.environment.settings):
        return True
    # What was prepared for jobs goes before what the machine's variable happens to name.
    return choice.folder is None and data.on_this_machine() and not _is_prepared(data)


def _is_prepared(data: PreparedData) -> bool:
    """Whether the usual folder has what a job needs; one that cannot be read is named once it is used."""
    try:
        prepared = read_prepared(DEFAULT_FOLDER / data.preparation, data.preparation)
    except PrepareError:
        return True
    return prepared is not None and not set(data.needs) & set(prepared.missing())


def _nothing_prepared(data: PreparedData, folder: Path, recipe: Recipe) -> RecipeError:
    if data.preparation == ALFWORLD and (folder / MANIFEST).is_file():
        return RecipeError(
            f"{folder} was not prepared by slurm/prepare.sh, but holds games with their {MANIFEST}: to train "
            f"on them give {_SETTINGS}data={folder}"
        )
    return RecipeError(
        f"there is nothing to train on: {folder} is not prepared. Fetch {data.what} on a login node by "
        f"`{command(folder, recipe)}` (--dry-run says what it costs), name a prepared folder by EMPG_DATA=DIR, "
        f"{data.otherwise}"
    )


def overrides_of_prepared(folder: Path, recipe: Recipe, *, wants_model: bool = True) -> list[str]:
    """The recipe's keys for what lies in a prepared folder. Raises RecipeError with the command that fixes it."""
    data = PREPARATIONS[recipe.environment.name]
    try:
        prepared = read_prepared(folder, data.preparation)
    except PrepareError as error:
        raise RecipeError(f"the prepared data cannot be used: {error}") from None
    fix = command(folder, recipe)
    if prepared is None:
        raise RecipeError(f"EMPG_DATA is {folder}, which has no {NAME}: prepare it by `{fix}`")
    missing = [part for part in prepared.missing() if part in data.needs]
    if missing:
        raise RecipeError(
            f"{folder} is prepared but for {', '.join(missing)}: go on by `{fix}`, or name another by EMPG_DATA"
        )
    root = folder.absolute()
    model = _model(prepared, recipe, folder) if wants_model else None
    _require_whole(data, prepared, model, root, fix)
    settings = data.settings(prepared, root, recipe.environment.settings)
    words = [f"{_SETTINGS}{name}={json.dumps(value)}" for name, value in settings.items()]
    if model is not None:
        words.append(f"model.path={json.dumps(str(root / model.path))}")
    return words


def what_is_trained_on(recipe: Recipe) -> list[str]:
    """What a user must know of the data, as notes."""
    data = PREPARATIONS.get(recipe.environment.name)
    if data is None:
        return []
    settings = recipe.environment.settings
    notes = data.told(settings)
    if recipe.evaluation.questions == most_questions(recipe, settings):
        notes.append(f"evaluation.questions is {recipe.evaluation.questions}: its smallest test split has no more")
    return notes


def command(folder: Path, recipe: Recipe) -> str:
    """What prepares `folder` for the recipe, whose environment has a preparation."""
    prepare = prepare_command(recipe, folder)
    assert prepare is not None, f"{recipe.environment.name} is in PREPARATIONS"
    return prepare


def _model(prepared: PreparedFolder, recipe: Recipe, folder: Path) -> PreparedModel | None:
    """The prepared model of the recipe; None where the recipe's own folder is there. Raises RecipeError."""
    name = recipe.model.path.name
    if name in prepared.models:
        return prepared.models[name]
    if recipe.model.path.exists():
        return None
    there = ", ".join(sorted(prepared.models)) or "none"
    fix = f"{command(folder, recipe)} --only model"
    raise RecipeError(
        f"model.path is {recipe.model.path}, which is not there, and the prepared {folder} has no model of that "
        f"name (it has: {there}): fetch it by `{fix}`, or name a folder by EMPG_MODEL"
    )


def _require_whole(
    data: PreparedData, prepared: PreparedFolder, model: PreparedModel | None, root: Path, fix: str
) -> None:
    """Every file is where it was put, as large as it was; contents are checked by slurm/prepare.sh."""
    files = [*data.files(prepared), *(model.files if model is not None else ())]
    for file in files:
        path = root / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            raise RecipeError(f"{path} is gone or has another size than when it was prepared: `{fix}`")
    gone = data.gone(prepared, root)
    if gone:
        raise RecipeError(f"{gone} is gone: `{fix}` makes it again")
