"""A trained policy, what trained it, and what an evaluation found of it: read from a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from megatron_empg.common.json_files import object_or_nothing
from megatron_empg.environments.config import EnvironmentConfig
from megatron_empg.environments.registry import default_settings, plugin
from megatron_empg.environments.settings import read_settings
from megatron_empg.recipe import Recipe, RecipeError, SftRecipe, load_recipe
from megatron_empg.report.table.errors import TableError
from megatron_empg.report.table.measured import Pass, PassResult, passes_of_metrics
from megatron_empg.report.table.methods import Method
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.metrics import read_metrics

CAVEATS = "caveats"
"""Key of identity.json with what the environment said of itself where the run ran."""


@dataclass(frozen=True)
class Result:
    """One policy, evaluated.

    `recipe` is what trained it, with the environment and the evaluation section that it was asked by. Where no run
    of ours is known to have trained it, it is the evaluation's, and `method` says so. `step` is the training step
    that the policy is of, 0 where it was not trained.
    """

    name: str
    source: str
    """The file that the figures are from."""
    recipe: Recipe
    method: Method
    step: int
    passes: Mapping[Pass, PassResult]
    samples: int = 1
    """Of each question, in sampled decoding."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """As identity.json has it."""
    notes: tuple[str, ...] = ()
    """What is odd about it and does not keep it from the table."""

    @property
    def environment(self) -> EnvironmentConfig:
        return self.recipe.environment

    @property
    def seed(self) -> int:
        return self.recipe.run.seed

    @property
    def trained(self) -> bool:
        return self.method.algorithm is not None

    def caveats(self) -> tuple[str, ...]:
        """Why its environment is not the published one, as it said where the run ran, or as it says here."""
        noted = self.identity.get(CAVEATS)
        if isinstance(noted, list):
            return tuple(map(str, noted))
        return said_here(self.environment)


@dataclass(frozen=True)
class ExcludedRun:
    """A run that is not in the table."""

    name: str
    why: str


def said_here(environment: EnvironmentConfig) -> tuple[str, ...]:
    """What the environment says of itself on this machine."""
    try:
        kind = plugin(environment.name)
        return kind.caveats(read_settings(kind.Settings, environment.settings, environment.name))
    except Exception as error:  # a plug-in may fail in its own way, and the table is made without it
        return (f"{environment.name} could not be asked what is not comparable ({error})",)


def is_run(path: Path) -> bool:
    """Whether it is a run's folder, as `empg report` knows one."""
    folder = RunFolder(path)
    return folder.recipe.is_file() or folder.metrics.is_file()


def result_of_run(path: Path) -> Result | ExcludedRun:
    """The result of the run's last evaluation. Raises TableError for a folder that holds no run."""
    if not is_run(path):
        raise TableError(
            f"{path} is not a run folder: it has neither recipe.yaml nor metrics.jsonl. Give folders of "
            "`empg train`, or documents that `empg evaluate --json` wrote"
        )
    folder = RunFolder(path)
    recipe = recipe_of_run(folder)
    if isinstance(recipe, str):
        return ExcludedRun(str(path), recipe)
    records = sorted(read_metrics(folder), key=itemgetter("step"))
    last = None
    for record in records:
        if passes_of_metrics(record):
            last = record
    if last is None:
        return ExcludedRun(
            str(path), "it has logged no evaluation (evaluation.questions of its recipe says how many)"
        )
    if last["step"] == 0:
        done = records[-1]["step"]
        return ExcludedRun(
            str(path), f"it was evaluated before training alone; {done} of {recipe.run.steps} steps are done"
        )
    return Result(
        name=str(path),
        source=folder.metrics.name,
        recipe=recipe,
        method=Method.of(recipe),
        step=last["step"],
        passes=passes_of_metrics(last),
        identity=object_or_nothing(folder.identity),
        notes=notes_on(folder, recipe, last["step"]),
    )


def recipe_of_run(folder: RunFolder) -> Recipe | str:
    """The recipe that trained the run, or why there is none to compare by."""
    if not folder.recipe.is_file():
        return f"it has no {folder.recipe.name}, so that nobody knows what trained it"
    try:
        return load_recipe(folder.recipe)
    except RecipeError as error:
        if _is_supervised(folder):
            return "it is a supervised warm-up, which has no success of episodes"
        return f"its {folder.recipe.name} is none of this release: {' '.join(str(error).split())}"


def notes_on(folder: RunFolder, recipe: Recipe, step: int) -> tuple[str, ...]:
    """What keeps a reader from taking the run for a whole one."""
    found = []
    if step < recipe.run.steps:
        found.append(f"unfinished: its last evaluation is of step {step} of {recipe.run.steps}")
    if torn := _torn_lines(folder):
        found.append(f"{torn} lines of {folder.metrics.name} could not be read")
    return tuple(found)


def _is_supervised(folder: RunFolder) -> bool:
    try:
        load_recipe(folder.recipe, kind=SftRecipe)
    except RecipeError:
        return False
    return True


def _torn_lines(folder: RunFolder) -> int:
    if not folder.metrics.exists():
        return 0
    text = folder.metrics.read_text(encoding="utf-8", errors="replace")
    written = [line for line in text.split("\n") if line.strip()]
    return len(written) - len(read_metrics(folder))


def default_settings_of(environment: EnvironmentConfig) -> dict[str, Any]:
    """The environment's settings with its defaults; one that is null is not given."""
    given = {name: value for name, value in environment.settings.items() if value is not None}
    return {**default_settings(environment.name, environment.settings), **given}
