"""What makes a run that run: a folder goes on under the same recipe, model and data, or not at all.

Every key of a recipe is either fixed or may change on a continuation; docs/runs.md lists them for users.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic_core import PydanticUndefined

from megatron_empg.environments.registry import DATA_SETTINGS, SERVICE_SETTINGS, data_files, default_settings
from megatron_empg.recipe import Recipe, RecipeError, Section, SftRecipe, dump_recipe
from megatron_empg.trainer.fingerprint import fingerprint_file, fingerprint_model
from megatron_empg.trainer.jsonl import write_aside
from megatron_empg.trainer.run_folder import RunFolder, RunFolderError

MAY_CHANGE = frozenset({
    # How long it goes on, and what it keeps and tells.
    "run.folder", "run.steps", "run.checkpoint_every", "run.keep_checkpoints",
    "logging.*", "limits.*", "evaluation.*", "sft.validate_every", "algorithm.kl_to_initial_every",
    # Where and how fast it is computed.
    "engines.*", "rollout.concurrency",
    "actor.tensor_parallel", "actor.pipeline_parallel", "actor.virtual_pipeline", "actor.context_parallel",
    "actor.context_exchange", "actor.expert_parallel", "actor.data_parallel", "actor.sequence_parallel",
    "actor.overlap", "actor.recompute", "actor.recompute_layers", "actor.max_tokens_per_microbatch",
    # In force from the first step of the continuation on.
    "actor.optimizer.*",
})  # fmt: skip
"""Keys that may be another on a continuation; `section.*` is all of a section. Every other key is fixed."""

BY_CONTENT = frozenset({"model.path"})
"""Keys whose text may change but not what lies there; so with the environment's files."""

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
    except RecipeError:
        folder.close()
        raise
    return folder


def require_same_run(recipe: Recipe | SftRecipe, *, model: bool = True) -> None:
    """Raise RecipeError if the recipe's run folder holds a run that cannot go on under it; names every difference.

    Reads alone. `model`: compare the model too, which is not at its place before a job has converted it.
    """
    folder = RunFolder(recipe.run.folder)
    if recipe.model.path.resolve() == folder.policy.resolve():
        raise RecipeError(
            f"model.path is {recipe.model.path}, where this run (run.folder {recipe.run.folder}) writes its own "
            "policy: it could not go on from its beginning once that is written anew; give another run.folder"
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
    since it is newer than the record, had today's default.
    """
    kind = type(recipe)
    today = environment_defaults(recipe)
    then = today | {key: value for key, value in (defaults or {}).items() if key in today}
    old = default_values(kind) | then | flat(recorded, kind)
    new = today | flat(recipe.model_dump(mode="json"), kind)
    for key in dict.fromkeys([*new, *(key for key in old if key.startswith(SETTINGS))]):
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
        inner = field.annotation if field else None
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, Section):
            found |= {f"{name}.{key}": item for key, item in flat(value, inner).items()}
        elif isinstance(value, Mapping) and name == "settings":
            found |= _flat_settings(value, "settings.")
        else:
            found[name] = value
    return found


def _flat_settings(values: Mapping[str, Any], before: str) -> dict[str, Any]:
    """{dotted key: value} of free settings; one that is null is not given."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat_settings(value, f"{before}{name}.")
        elif value is not None:
            found[before + name] = value
    return found


def environment_defaults(recipe: Recipe | SftRecipe) -> dict[str, Any]:
    """{dotted key: value} of what the recipe's environment does where the recipe says nothing."""
    acting = recipe.environment
    return _flat_settings(default_settings(acting.name, acting.settings), SETTINGS)


def default_values(kind: type[Section]) -> dict[str, Any]:
    """{dotted key: default}, as a dumped recipe would say it; keys without one are left out."""
    found: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= {f"{name}.{key}": value for key, value in default_values(field.annotation).items()}
        elif (default := field.get_default(call_default_factory=True)) is not PydanticUndefined:
            found[name] = json.loads(json.dumps(default, default=str))
    return found


def _other_kind(folder: RunFolder, recipe: Recipe | SftRecipe) -> Iterator[str]:
    recorded = _recorded_recipe(folder)
    ours = _command(recipe)
    theirs = _identity(folder).get("kind") or ("sft" if recorded and "sft" in recorded else "train")
    if ours != theirs:
        yield f"it is a run of `empg {theirs}`, this is `empg {ours}`"


def _other_keys(folder: RunFolder, recipe: Recipe | SftRecipe) -> Iterator[str]:
    """By recipe.yaml, and by the newest checkpoint, whose manifest says what it was trained with."""
    name = recipe.environment.name
    places = {SETTINGS + key for table in (DATA_SETTINGS, SERVICE_SETTINGS) for key in table[name]}
    given = flat(recipe.model_dump(mode="json"), type(recipe))
    named: set[str] = set()
    for recorded in (_recorded_recipe(folder), folder.checkpoint_recipe()):
        if recorded is None:
            continue
        for key, old, new in differences(recorded, recipe, _recorded_defaults(folder)):
            if may_change(key) or key in BY_CONTENT | places | named:
                continue
            named.add(key)
            by_default = ", the default of this release: give it as it was" if key not in given else ""
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
    for name, before in recorded.get("data", {}).items():
        now = ours["data"].get(name)
        if now and before["sha256"] != now["sha256"]:
            yield (
                f"{SETTINGS}{name}: the run began with {before['path']}; the content of {now['path']} is another"
            )


def _too_few_steps(folder: RunFolder, recipe: Recipe | SftRecipe) -> Iterator[str]:
    done = folder.last_checkpoint()
    if done > recipe.run.steps:
        yield f"run.steps is {recipe.run.steps}; the run in {folder.root} has {done} steps behind it: raise it"


def describe(recipe: Recipe | SftRecipe) -> dict[str, Any]:
    """Kind of run, fingerprints of its model and data (without what is not at its place), and the defaults of its
    environment, which another release may have changed."""
    files = data_files(recipe.environment.name, recipe.environment.settings)
    data = {name: {"path": str(path), "sha256": fingerprint_file(path)} for name, path in files.items()}
    return {
        "kind": _command(recipe),
        "model_path": str(recipe.model.path),
        "model": fingerprint_model(recipe.model.path, recipe.model.initialise),
        "data": {name: entry for name, entry in data.items() if entry["sha256"]},
        "defaults": environment_defaults(recipe),
    }


def _write_start(folder: RunFolder, recipe: Recipe | SftRecipe) -> None:
    """The recipe last: until it is there, the next start finds the changes that this one made and notes them."""
    begun = folder.begun()
    known, ours = _identity(folder) if begun else {}, describe(recipe)
    # What was not there at the first start (a model that the job converts) is noted when it is.
    ours |= {name: value for name, value in known.items() if value}
    if ours != known:
        write_aside(folder.identity, json.dumps(ours, indent=2) + "\n")
    changed = changed_keys(folder, recipe) if begun else {}
    noted = {"step": folder.last_checkpoint()} | ({"changed": changed} if changed else {})
    folder.write_start(dump_recipe(recipe), noted)


def _identity(folder: RunFolder) -> dict[str, Any]:
    """As recorded; empty for a folder of a release that did not."""
    try:
        found = json.loads(folder.identity.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _recorded_defaults(folder: RunFolder) -> dict[str, Any]:
    found = _identity(folder).get("defaults")
    return found if isinstance(found, dict) else {}


def _recorded_recipe(folder: RunFolder) -> dict[str, Any] | None:
    try:
        found = yaml.safe_load(folder.recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None


def _command(recipe: Recipe | SftRecipe) -> str:
    return "sft" if isinstance(recipe, SftRecipe) else "train"


def _said(value: Any) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False)
