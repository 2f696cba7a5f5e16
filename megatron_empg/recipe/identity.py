"""What makes a run that run: a folder goes on under the same recipe, model and data, or not at all.

Every key of a recipe is either fixed or may change on a continuation; docs/runs.md lists them for users.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic_core import PydanticUndefined

from megatron_empg.common.files import put_json
from megatron_empg.common.json_files import object_or_nothing
from megatron_empg.common.section import Mark, Section, choices, marked_keys, section_of, shared_keys
from megatron_empg.environments.registry import caveats, data_files, default_settings, place_settings
from megatron_empg.environments.settings import names_a_place
from megatron_empg.recipe import Recipe, RecipeError, SftRecipe, dump_recipe
from megatron_empg.recipe.errors import MOVED_KEYS, MOVED_SECTIONS
from megatron_empg.recipe.fingerprint import fingerprint_file, fingerprint_model
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.folder_lock import RunFolderError

MAY_CHANGE = frozenset(marked_keys(Recipe, Mark.MAY_CHANGE) | marked_keys(SftRecipe, Mark.MAY_CHANGE))
"""Keys that may be another on a continuation; `section.*` is all of a section. Every other key is fixed."""

BY_CONTENT = frozenset({"model.path"})
"""Keys whose text may change but not what lies there; so with the environment's files."""

OF_A_REPLAY = frozenset({"rollout.replay_from"})
"""Keys in which a replay differs from what it replays."""

SETTINGS = "environment.settings."
"""What the keys of an environment's settings begin with."""

MODEL_PARTS = {"config": "config.json", "tokenizer": "the tokenizer's files", "weights": "the weights"}


def take_up(recipe: Recipe | SftRecipe) -> RunFolder:
    """The recipe's run folder, locked: a new one, or the one of the same run.

    Notes the recipe and this start there, unless the run has finished its steps: then nothing is written. Raises
    RecipeError when the folder holds another run or cannot be used.
    """
    folder = RunFolder(recipe.run.folder)
    try:
        folder.lock()
    except RunFolderError as error:
        raise RecipeError(f"run.folder: {error}") from None
    try:
        require_same_run(recipe)
        if not folder.finished(recipe.run.steps):
            _write_start(folder, recipe)
            folder.stop.unlink(missing_ok=True)
    except (RunFolderError, OSError) as error:
        folder.close()
        raise RecipeError(f"run.folder: cannot write the run folder {folder.root}: {error}") from None
    except BaseException:
        folder.close()
        raise
    return folder


def require_same_run(recipe: Recipe | SftRecipe, *, model: bool = True) -> None:
    """Raise RecipeError if the recipe's run folder holds a run that cannot go on under it, or if the run whose
    batches it replays is of another recipe; names every difference.

    Reads alone. `model`: compare the model too, which is not at its place before a job has converted it.
    """
    _require_same_as_replayed(recipe, model)
    folder = RunFolder(recipe.run.folder)
    if recipe.model.path.resolve() == folder.policy.resolve():
        raise RecipeError(
            f"model.path is {recipe.model.path}, where this run (run.folder {recipe.run.folder}) writes its own "
            "policy: it could not start again from its beginning once that is overwritten; give another run.folder"
        )
    if not folder.begun():
        return
    faults = [*_other_kind(folder, recipe)]
    faults = faults or [
        *_other_keys(folder, recipe),
        *_other_files(folder, recipe, model),
        *_too_few_steps(folder, recipe),
    ]
    if faults:
        raise RecipeError(
            f"run.folder: {folder.root} holds a run that cannot go on under this recipe:\n"
            + "\n".join(f"  - {fault}" for fault in faults)
            + "\nGive another run.folder, or set these back; docs/runs.md lists what may change"
        )


def _require_same_as_replayed(recipe: Recipe | SftRecipe, model: bool) -> None:
    """Raise RecipeError if `rollout.replay_from` is given and its run's batches would give other numbers here."""
    if not isinstance(recipe, Recipe) or recipe.rollout.replay_from is None:
        return
    folder = RunFolder(recipe.rollout.replay_from)
    if _recorded_recipe(folder) is None:
        raise RecipeError(
            f"rollout.replay_from is {folder.root}, where there is no {folder.recipe.name} of a run: give the "
            "folder of a run with rollout.max_lag, or leave it out"
        )
    faults = [*_other_kind(folder, recipe)]
    faults = faults or [*_other_keys(folder, recipe, besides=OF_A_REPLAY), *_other_files(folder, recipe, model)]
    if faults:
        raise RecipeError(
            f"rollout.replay_from: the run in {folder.root} is of another recipe, so its batches would be trained "
            "on with other numbers than its own:\n"
            + "\n".join(f"  - {fault}" for fault in faults)
            + "\nSet these back, or replay another run; docs/runs.md lists what may change"
        )


def changed_keys(folder: RunFolder, recipe: Recipe | SftRecipe) -> dict[str, dict[str, Any]]:
    """{key: {"from", "to"}} of the keys that are another than at the folder's last start; not of its place."""
    recorded = _recorded_recipe(folder)
    if recorded is None:
        return {}
    return {
        key: {"from": old, "to": new}
        for key, old, new in differences(recorded, recipe, _recorded_defaults(folder))
        if key not in BY_CONTENT and key != "run.folder"
    }


def differences(
    recorded: Mapping[str, Any], recipe: Recipe | SftRecipe, defaults: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Any, Any]]:
    """(key, recorded, new) of every key of the recipe that is another, the environment's settings included.

    `defaults`: those of the environment when the record was made, by dotted key. A key that was not recorded,
    since it is newer than the record, had today's default. Where a choice is another, as
    `algorithm.modulation.name`, its own keys are not told.
    """
    kind = type(recipe)
    today, deciding = environment_defaults(recipe), names_that_decide(recipe)
    then = today | {key: value for key, value in (defaults or {}).items() if key in today}
    old = default_values(recipe) | then | flat(recorded, kind)
    new = today | flat(recipe.model_dump(mode="json"), kind)
    old_settings = [key for key in old if key.startswith(SETTINGS)]
    for key in dict.fromkeys([*new, *old_settings]):
        name = deciding.get(key)
        if name is not None and old[name] != new[name]:
            continue
        if old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def may_change(key: str) -> bool:
    """Whether a continuation may have another value of the key (dotted, as in an override)."""
    sections = key.split(".")
    above = [".".join(sections[:count]) + ".*" for count in range(1, len(sections))]
    return key in MAY_CHANGE or any(name in MAY_CHANGE for name in above)


def flat(values: Mapping[str, Any], kind: type[Section]) -> dict[str, Any]:
    """{dotted key: value} of nested values; an environment's settings are keys too, those that are given."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        field = kind.model_fields.get(name)
        inner = None
        if field:
            inner = _section(field.annotation, value)
        if isinstance(value, Mapping) and inner is not None:
            found |= {f"{name}.{key}": item for key, item in flat(value, inner).items()}
        elif isinstance(value, Mapping) and name == "settings":
            found |= _flat_settings(value, "settings.")
        else:
            found[name] = value
    return found


def _section(annotation: Any, values: Any) -> type[Section] | None:
    """The section of a key with these values; under a name that this release does not know, any of the choices, of
    which the shared keys are found."""
    return section_of(annotation, values) or next(iter(choices(annotation).values()), None)


def _flat_settings(values: Mapping[str, Any], before: str) -> dict[str, Any]:
    """{dotted key: value} of free settings, those in lists of mappings too; one that is null is not given."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat_settings(value, f"{before}{name}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            found |= _flat_settings({str(place): item for place, item in enumerate(value)}, f"{before}{name}.")
        elif value is not None:
            found[before + name] = value
    return found


def environment_defaults(recipe: Recipe | SftRecipe) -> dict[str, Any]:
    """{dotted key: value} of what the recipe's environment does where the recipe says nothing."""
    acting = recipe.environment
    return _flat_settings(default_settings(acting.name, acting.settings), SETTINGS)


def default_values(section: Section) -> dict[str, Any]:
    """{dotted key: default} of a recipe's keys, as a dumped one would say it; keys without one are left out. The
    default of a choice's `name` is what is chosen where nothing is said."""
    found: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        part = getattr(section, name)
        if isinstance(part, Section):
            found |= {f"{name}.{key}": value for key, value in default_values(part).items()}
            if choices(field.annotation):
                found[f"{name}.name"] = field.default.name
        elif (default := field.get_default(call_default_factory=True)) is not PydanticUndefined:
            found[name] = json.loads(json.dumps(default, default=str))
    return found


def names_that_decide(section: Section, above: str = "") -> dict[str, str]:
    """{dotted key: the `name` that decides whether there is such a key}, of keys that not all choices share."""
    found: dict[str, str] = {}
    for name, field in type(section).model_fields.items():
        part = getattr(section, name)
        if not isinstance(part, Section):
            continue
        here = f"{above}{name}."
        siblings = choices(field.annotation)
        if siblings:
            shared = {"name", *shared_keys(siblings.values())}
            keys = flat(part.model_dump(mode="json"), type(part))
            found |= {here + key: f"{here}name" for key in keys if key.partition(".")[0] not in shared}
        found |= names_that_decide(part, here)
    return found


def _other_kind(folder: RunFolder, recipe: Recipe | SftRecipe) -> Iterator[str]:
    recorded = _recorded_recipe(folder)
    ours = _command(recipe)
    theirs = _identity(folder).get("kind") or ("sft" if recorded and "sft" in recorded else "train")
    if ours != theirs:
        yield f"it is a run of `empg {theirs}`, this is `empg {ours}`"
        return
    for written in (recorded, folder.checkpoint_recipe()):
        if gone := _keys_that_are_gone(written or {}):
            yield (
                f"it was begun by an earlier release, whose recipes had {', '.join(gone)}: only that release can "
                "go on with it"
            )
            return


def _keys_that_are_gone(recorded: Mapping[str, Any]) -> list[str]:
    """Those of earlier releases that say what is said otherwise now, so that nothing can be compared."""
    algorithm = recorded.get("algorithm")
    if isinstance(algorithm, Mapping):
        known = algorithm
    else:
        known = {}
    return [key for key in (*MOVED_SECTIONS, *MOVED_KEYS) if key.removeprefix("algorithm.") in known]


def _other_keys(
    folder: RunFolder, recipe: Recipe | SftRecipe, besides: frozenset[str] = frozenset()
) -> Iterator[str]:
    """By recipe.yaml, and by the newest checkpoint, whose manifest says what it was trained with. `besides`: keys
    that may be others."""
    name = recipe.environment.name
    places = [SETTINGS + key for key in sorted(place_settings(name))]
    given = flat(recipe.model_dump(mode="json"), type(recipe))
    named: set[str] = set()
    for recorded in (_recorded_recipe(folder), folder.checkpoint_recipe()):
        if recorded is None:
            continue
        for key, old, new in differences(recorded, recipe, _recorded_defaults(folder)):
            if may_change(key) or key in BY_CONTENT | besides | named or names_a_place(key, places):
                continue
            named.add(key)
            by_default = ""
            if key not in given:
                by_default = ", the default of this release: give it as it was"
            yield f"{key} was {_said(old)}, is {_said(new)}{by_default}"


def _other_files(folder: RunFolder, recipe: Recipe | SftRecipe, model: bool) -> Iterator[str]:
    recorded = _identity(folder)
    ours = describe(recipe)
    if model and (theirs := recorded.get("model")) and ours["model"]:
        differing = [words for part, words in MODEL_PARTS.items() if theirs.get(part) != ours["model"].get(part)]
        if differing:
            yield (
                f"model.path: the run began from {recorded.get('model_path')}; in {recipe.model.path} "
                f"{' and '.join(differing)} differ from what was there"
            )
    data = recorded.get("data", {})
    for name, before in data.items():
        now = ours["data"].get(name)
        if now and before["sha256"] != now["sha256"]:
            yield (
                f"{SETTINGS}{name}: the run began with {before['path']}; the content of {now['path']} is another"
            )
    if data:  # a run that recorded no data at all is an earlier release's
        for name in sorted(ours["data"].keys() - data.keys()):
            yield f"{SETTINGS}{name} is {ours['data'][name]['path']}; the run began without it"
    given = data_files(recipe.environment.name, recipe.environment.settings)
    for name in sorted(data.keys() - given.keys()):
        yield f"{SETTINGS}{name} was {data[name]['path']}; it is not given now"


def _too_few_steps(folder: RunFolder, recipe: Recipe | SftRecipe) -> Iterator[str]:
    done = folder.last_checkpoint()
    if done > recipe.run.steps:
        yield f"run.steps is {recipe.run.steps}; the run in {folder.root} has done {done} steps: raise it"


def describe(recipe: Recipe | SftRecipe) -> dict[str, Any]:
    """Kind of run, fingerprints of its model and data (without what is not at its place), the defaults of its
    environment, which another release may have changed, and what that says is not comparable."""
    files = data_files(recipe.environment.name, recipe.environment.settings)
    data = {name: {"path": str(path), "sha256": fingerprint_file(path)} for name, path in files.items()}
    return {
        "kind": _command(recipe),
        "model_path": str(recipe.model.path),
        "model": fingerprint_model(recipe.model.path, recipe.model.initialise),
        "data": {name: entry for name, entry in data.items() if entry["sha256"]},
        "defaults": environment_defaults(recipe),
        "caveats": caveats(recipe.environment.name, recipe.environment.settings),
    }


def _write_start(folder: RunFolder, recipe: Recipe | SftRecipe) -> None:
    """The recipe last: until it is there, the next start finds the changes that this one made and notes them."""
    begun = folder.begun()
    known, ours = _identity(folder) if begun else {}, describe(recipe)
    # What was not there at the first start (a model that the job converts) is noted when it is.
    ours |= {name: value for name, value in known.items() if value}
    if ours != known:
        put_json(folder.identity, ours, indent=2)
    changed = {}
    if begun:
        changed = changed_keys(folder, recipe)
    noted: dict[str, Any] = {"step": folder.last_checkpoint()}
    if changed:
        noted["changed"] = changed
    folder.write_start(dump_recipe(recipe), noted)


def _identity(folder: RunFolder) -> dict[str, Any]:
    """As recorded; empty for a folder of a release that did not."""
    return object_or_nothing(folder.identity)


def _recorded_defaults(folder: RunFolder) -> dict[str, Any]:
    found = _identity(folder).get("defaults")
    if not isinstance(found, dict):
        return {}
    return found


def _recorded_recipe(folder: RunFolder) -> dict[str, Any] | None:
    try:
        found = yaml.safe_load(folder.recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(found, dict):
        return None
    return found


def _command(recipe: Recipe | SftRecipe) -> str:
    if not isinstance(recipe, SftRecipe):
        return "train"
    return "sft"


def _said(value: Any) -> str:
    if value is None:
        return "not given"
    return json.dumps(value, ensure_ascii=False)
