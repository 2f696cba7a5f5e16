"""Whose answers are asked for: model folders, runs and their checkpoints, and what else decides an outcome."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_empg.common.section import Mark, marked_keys
from megatron_empg.environments.registry import place_settings
from megatron_empg.environments.settings import names_a_place
from megatron_empg.evaluate.errors import EvaluationError
from megatron_empg.recipe import Recipe
from megatron_empg.recipe.fingerprint import fingerprint_model
from megatron_empg.recipe.identity import SETTINGS, describe, flat
from megatron_empg.run.checkpoint_folders import step_folder
from megatron_empg.run.folder import RunFolder
from megatron_empg.weights.checkpoints.megatron_folder import is_megatron

DECIDING_KEYS = tuple(sorted(marked_keys(Recipe, Mark.DECIDES_EPISODES)))
"""Keys of a recipe that decide how an episode of an evaluation goes, beside the environment's settings."""


@dataclass(frozen=True)
class Policy:
    """A policy to evaluate. `given` is what the command named, `source` where its weights lie.

    `key` stands for its content: config, tokenizer and weights.
    """

    label: str
    given: Path
    source: Path
    fingerprint: dict[str, str]

    @property
    def key(self) -> str:
        text = json.dumps(self.fingerprint, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    @property
    def megatron(self) -> bool:
        """Whether it must be converted before an engine can load it."""
        return is_megatron(self.source)


def policies_of(folders: Sequence[Path]) -> list[Policy]:
    """The policies in these folders. Raises EvaluationError for a folder without one, or one policy twice."""
    found: dict[str, Policy] = {}
    for label, folder in zip(labels(folders), folders, strict=True):
        source = source_of(folder)
        fingerprint = fingerprint_model(source, "checkpoint")
        if fingerprint is None:
            raise EvaluationError(f"--model {folder}: there is no such folder")
        policy = Policy(label, folder, source, fingerprint)
        before = found.setdefault(policy.key, policy)
        if before is not policy:
            raise EvaluationError(
                f"{before.given} and {policy.given} are the same policy (config, tokenizer and weights); "
                "name each once"
            )
    return list(found.values())


def source_of(folder: Path) -> Path:
    """Where the policy of a folder lies: the folder itself, or for a run what it exported or its newest
    checkpoint.

    Raises EvaluationError for a run that has neither.
    """
    run = RunFolder(folder)
    if (folder / "config.json").exists() or is_megatron(folder) or not run.recipe.exists():
        return folder
    newest = run.last_checkpoint()
    if run.policy.exists() and run.exported_step(default=newest) >= newest:
        return run.policy
    if newest:
        return step_folder(run.checkpoints, newest)
    raise EvaluationError(f"--model {folder}: this run has no checkpoint yet, and no policy")


def labels(folders: Sequence[Path]) -> list[str]:
    """Short names: as many last parts of each path as tell them all apart."""
    parts = [Path(folder).parts for folder in folders]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(names) or count == max(map(len, parts)):
            return names
    return []


def converted(policy: Policy, place: Path, like: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """A folder that engines load: the policy's own, or a conversion below `place`, made once.

    `like` has the configuration and tokenizer where a checkpoint has none. Raises CheckpointError.
    """
    if not policy.megatron:
        return policy.source
    from megatron_empg.weights.checkpoints import conversion

    destination = place / policy.key
    if not destination.exists():
        place.mkdir(parents=True, exist_ok=True)
        without = None
        if not (policy.source / "config.json").exists():
            without = like
        conversion.to_hugging_face(policy.source, destination, like=without, progress=progress)
    return destination


def identity_of(recipe: Recipe) -> dict[str, Any]:
    """All but the policy that decides how an episode goes: two evaluations of one identity can be put together.

    Data counts by its content, wherever it lies, and a service wherever it is reached.
    """
    given = flat(recipe.model_dump(mode="json"), type(recipe))
    described = describe(recipe)
    found: dict[str, Any] = {}
    for key in DECIDING_KEYS:
        found[key] = given[key]
    places = [SETTINGS + name for name in place_settings(recipe.environment.name)]
    settings = {**described["defaults"], **given}
    for key in sorted(settings):
        if key.startswith(SETTINGS) and not names_a_place(key, places):
            found[key] = settings[key]
    for name, entry in described["data"].items():
        found[f"content of {SETTINGS}{name}"] = entry["sha256"]
    return found
