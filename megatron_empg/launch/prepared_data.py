"""What a cluster job trains on: what slurm/prepare.sh fetched, data of the user's own, or the miniature."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_empg.prepare.errors import PrepareError
from megatron_empg.prepare.manifest import (
    DEEPSEARCH,
    NAME,
    Prepared,
    PreparedFile,
    PreparedModel,
    PreparedQuestions,
    read_prepared,
)
from megatron_empg.recipe import Recipe, RecipeError
from megatron_empg.weights.mapping.known_models import known_model

if TYPE_CHECKING:
    from collections.abc import Iterator

PREPARATIONS = {"deep_search": DEEPSEARCH}
"""By environment, what slurm/prepare.sh calls its data; others need none."""
OWN_DATA = {"deep_search": ("corpus", "questions", "index")}
"""By environment, the settings that name data. A job whose user gives one needs no preparation."""
DEFAULT_FOLDER = Path("data")


@dataclass(frozen=True)
class DataChoice:
    """What the user says: a prepared folder (EMPG_DATA), or that the miniature is meant (EMPG_MINIATURE)."""

    folder: Path | None = None
    miniature: bool = False


def data_overrides(recipe: Recipe, words: Sequence[str], choice: DataChoice) -> list[str]:
    """Overrides that go before the user's `words`, which are in `recipe` already. Raises RecipeError."""
    preparation = PREPARATIONS.get(recipe.environment.name)
    if preparation is None or choice.miniature or _has_own_data(recipe, words):
        return []
    folder = choice.folder
    if folder is None:
        folder = DEFAULT_FOLDER / preparation
        if not (folder / NAME).exists():
            fix = command(folder, recipe)
            raise RecipeError(
                f"there is nothing to train on: {folder} is not prepared. Fetch questions, corpus and model on a "
                f"login node by `{fix}` (--dry-run says what it costs), name a prepared folder by EMPG_DATA=DIR, "
                "give data=CORPUS.jsonl of your own, or train on the miniature corpus by EMPG_MINIATURE=1"
            )
    wants_model = not any(word.startswith("model.path=") for word in words)
    return overrides_of_prepared(folder, recipe, wants_model=wants_model)


def overrides_of_prepared(folder: Path, recipe: Recipe, *, wants_model: bool = True) -> list[str]:
    """The recipe's keys for what lies in a prepared folder. Raises RecipeError with the command that mends it."""
    try:
        prepared = read_prepared(folder, PREPARATIONS.get(recipe.environment.name, DEEPSEARCH))
    except PrepareError as error:
        raise RecipeError(f"the prepared data cannot be used: {error}") from None
    fix = command(folder, recipe)
    if prepared is None:
        raise RecipeError(f"EMPG_DATA is {folder}, which has no {NAME}: prepare it by `{fix}`")
    missing = [part for part in prepared.missing() if part != "model"]
    if missing:
        raise RecipeError(
            f"{folder} is prepared but for {', '.join(missing)}: go on by `{fix}`, or name another by EMPG_DATA"
        )
    root = folder.absolute()
    model = _model(prepared, recipe, folder) if wants_model else None
    _require_whole(prepared, model, root, fix)
    assert prepared.index is not None
    questions = {
        split: [_question_setting(entry, root) for entry in entries]
        for split, entries in prepared.questions.items()
    }
    words = [
        f"environment.settings.questions={json.dumps(questions)}",
        f"environment.settings.index={json.dumps(str(root / prepared.index.path))}",
    ]
    if recipe.environment.settings.get("corpus") is not None:
        words.append("environment.settings.corpus=null")  # the miniature's: another one was not replaced
    if model is not None:
        words.append(f"model.path={json.dumps(str(root / model.path))}")
    return words


def what_is_trained_on(recipe: Recipe) -> list[str]:
    """What a user must know of the data, as notes."""
    from megatron_empg.environments.deep_search.settings import DEFAULT_CORPUS

    name, settings = recipe.environment.name, recipe.environment.settings
    if name not in OWN_DATA:
        return []
    questions = settings.get("questions")
    if questions:
        splits = ", ".join(f"{split} {len(files)}" for split, files in questions.items())
        return [
            f"trains on published questions (files: {splits}) over {settings.get('index', 'a search of its own')}"
        ]
    corpus = settings.get("corpus", DEFAULT_CORPUS)
    if Path(corpus).resolve() == Path(DEFAULT_CORPUS).resolve():
        return [f"trains on the miniature corpus ({corpus}); data=CORPUS.jsonl gives another"]
    return [f"trains on questions made of {corpus}"]


def command(folder: Path, recipe: Recipe) -> str:
    """What prepares `folder` for the recipe."""
    preparation = PREPARATIONS.get(recipe.environment.name, DEEPSEARCH)
    known = known_model(recipe.model.path)
    model = f" --model {known.hub_id}" if known is not None else ""
    return f"bash slurm/prepare.sh {preparation} {folder}{model}"


def _has_own_data(recipe: Recipe, words: Sequence[str]) -> bool:
    """Whether the user or the recipe names data; that the recipe names the miniature is not enough."""
    from megatron_empg.environments.deep_search.settings import DEFAULT_CORPUS

    name, settings = recipe.environment.name, recipe.environment.settings
    given = tuple(f"environment.settings.{key}" for key in OWN_DATA[name])
    if any(word.startswith(tuple(f"{key}{end}" for key in given for end in "=.")) for word in words):
        return True
    if settings.get("questions") or settings.get("index"):
        return True
    corpus = settings.get("corpus")
    return corpus is not None and Path(corpus).resolve() != Path(DEFAULT_CORPUS).resolve()


def _model(prepared: Prepared, recipe: Recipe, folder: Path) -> PreparedModel | None:
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


def _require_whole(prepared: Prepared, model: PreparedModel | None, root: Path, fix: str) -> None:
    """Every file is where it was put, as large as it was; contents are checked by slurm/prepare.sh."""
    for file in _files(prepared, model):
        path = root / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            raise RecipeError(f"{path} is gone or has another size than when it was prepared: `{fix}`")
    assert prepared.index is not None
    index = root / prepared.index.path
    if not index.is_dir():
        raise RecipeError(f"the index {index} is gone: `{fix}` builds it again")


def _files(prepared: Prepared, model: PreparedModel | None) -> Iterator[PreparedFile]:
    for entries in prepared.questions.values():
        for entry in entries:
            yield entry.file
            if entry.aliases is not None:
                yield entry.aliases
    if model is not None:
        yield from model.files


def _question_setting(entry: PreparedQuestions, root: Path) -> dict[str, Any]:
    """An item of `environment.settings.questions`; what is not said is left out."""
    found: dict[str, Any] = {"dataset": entry.dataset, "path": str(root / entry.file.path)}
    if entry.weight is not None:
        found["weight"] = entry.weight
    if entry.limit is not None:
        found["limit"] = entry.limit
    if entry.aliases is not None:
        found["aliases"] = str(root / entry.aliases.path)
    return found
