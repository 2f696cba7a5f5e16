"""The cells of a study: which runs it is made of, and what each is started with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_empg.recipe import Recipe, RecipeError
from megatron_empg.recipe.check import check_recipe
from megatron_empg.study.config import Study
from megatron_empg.study.errors import StudyError
from megatron_empg.study.identity import SEED, SHARED, as_run, identity_of

RUNS = Path("runs/study")


@dataclass(frozen=True)
class Cell:
    """One run of a study. Example: ``Cell("sokoban", "dapo_empg", 2)``"""

    task: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """The cell in file names and messages: "sokoban-dapo_empg-2"."""
        return f"{self.task}-{self.method}-{self.seed}"


@dataclass(frozen=True)
class Setting:
    """What the seeds of a task and a method have in common."""

    recipe_path: Path
    overrides: tuple[str, ...]
    recipe: Recipe
    identity: str

    def words(self, cell: Cell, folder: Path) -> list[str]:
        """The words behind `empg train` that make a seed's run in a folder."""
        questions = f"evaluation.questions={self.recipe.evaluation.questions}"
        own = [*SHARED, *self.overrides, questions, f"{SEED}={cell.seed}", f"run.folder={folder}"]
        return [str(self.recipe_path), *own]


Settings = dict[tuple[str, str], Setting]
"""By task and method."""


def cells_of(study: Study, *, quick: bool = False) -> list[Cell]:
    """The runs in the order in which they are made: task by task, seed by seed, all methods of a seed together, so
    that what is there first can be paired. Raises StudyError where `quick` is asked for and not said."""
    if quick and study.quick is None:
        raise StudyError("--quick: the study says no `quick`; give it tasks, methods and seeds there")
    return list(_cells(study, quick))


def _cells(study: Study, quick: bool) -> Iterator[Cell]:
    for task in study.tasks:
        for seed in study.seeds:
            for method in study.methods_of(task):
                cell = Cell(task, method, seed)
                if not quick or _is_quick(study, cell):
                    yield cell


def _is_quick(study: Study, cell: Cell) -> bool:
    part = study.quick
    return part is not None and (
        cell.task in part.tasks and cell.method in part.methods and cell.seed in part.seeds
    )


def settings_of(study: Study, cells: Sequence[Cell]) -> Settings:
    """The setting of every task and method of the cells.

    Raises StudyError, by name, for a combination that is no recipe, and for methods of a task that differ in
    episodes, optimizer steps or evaluation.
    """
    found: Settings = {}
    for cell in cells:
        place = (cell.task, cell.method)
        if place not in found:
            found[place] = _setting(study, *place)
    for task in study.tasks:
        own = {method: setting.recipe for (of, method), setting in found.items() if of == task}
        check_alike(task, own)
        _check_series(study, task, list(own.values()))
    return found


def _setting(study: Study, task: str, method: str) -> Setting:
    asked = study.tasks[task]
    overrides = (*asked.overrides, *study.methods[method].overrides)
    try:
        recipe = as_run(asked.recipe, overrides)
        return Setting(asked.recipe, overrides, recipe, identity_of(recipe))
    except (RecipeError, StudyError) as error:
        raise StudyError(f"task {task}, method {method}: {error}") from None


def check_settings(settings: Settings) -> None:
    """Raise StudyError, by name, for a setting that would not begin to train.

    Its tasks, tokenizer or weights cannot be had.
    """
    for (task, method), setting in settings.items():
        try:
            check_recipe(setting.recipe)
        except RecipeError as error:
            raise StudyError(f"task {task}, method {method}: {error}") from None


@dataclass(frozen=True)
class Budget:
    """What a run may spend: episodes that its batches are made for, and optimizer steps."""

    episodes: int
    updates: int

    @classmethod
    def of(cls, recipe: Recipe) -> Budget:
        """The budget of a recipe. What a filter has played again is not in it: lines say what was played."""
        rollout = recipe.rollout
        return cls(rollout.groups * rollout.group_size * recipe.run.steps, recipe.total_updates)


def check_alike(task: str, recipes: dict[str, Recipe]) -> None:
    """Raise StudyError where a task's methods have other budgets or evaluations than its first one."""
    if not recipes:
        return
    first, *others = recipes
    for other in others:
        ours, theirs = Budget.of(recipes[first]), Budget.of(recipes[other])
        if ours != theirs:
            raise StudyError(
                f"task {task}: method {first} has {ours.episodes} episodes and {ours.updates} optimizer steps, "
                f"method {other} {theirs.episodes} and {theirs.updates}: methods are compared at equal ones; set "
                "rollout.groups, rollout.group_size, run.steps and algorithm.updates_per_batch alike"
            )
        if recipes[first].evaluation != recipes[other].evaluation:
            raise StudyError(
                f"task {task}: methods {first} and {other} are evaluated otherwise: give overrides of evaluation "
                "to the task, and to no method"
            )


def _check_series(study: Study, task: str, recipes: Sequence[Recipe]) -> None:
    """Raise StudyError for a task of whose evaluations none is reported."""
    if recipes and not set(study.series) & set(series_of(recipes[0])):
        raise StudyError(
            f"task {task}: it is evaluated on {', '.join(series_of(recipes[0]))}, and series names "
            f"{', '.join(study.series)}: name one of the first"
        )


def series_of(recipe: Recipe) -> list[str]:
    """What a recipe's evaluation measures: "test_id/sampled" and others."""
    found = []
    for split, greedy in recipe.evaluation.grid():
        decoding = "sampled"
        if greedy:
            decoding = "greedy"
        found.append(f"{split}/{decoding}")
    return found
