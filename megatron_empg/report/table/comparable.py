"""Why a line of ours may not be held against a paper's: what its set-up has otherwise, as far as it is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_empg.recipe import Recipe
from megatron_empg.report.table.groups import RunGroup
from megatron_empg.report.table.names import ALL_SPLITS
from megatron_empg.report.table.published import Paper, PaperSetup
from megatron_empg.report.table.results import Result, default_settings_of

HISTORY = "history_length"
"""The setting of a world of text that says how many earlier turns a prompt shows."""
WHOLE = "all"
"""What it says where a prompt shows them all."""


def model_of(recipe: Recipe, known: list[str]) -> str:
    """The published model whose name is a part of the policy's path, or the path itself."""
    path = recipe.model.path
    for model in known:
        if any(_names(part, model) for part in path.parts):
            return model
    return str(path)


def reasons(group: RunGroup, paper: Paper, setup: PaperSetup) -> Iterator[str]:
    """What is not comparable between a line and a paper's set-up, a sentence each."""
    for result in group.results:
        yield from result.caveats()
    yield from _another_model(group.first, paper, setup)
    yield from _another_training(group, paper, setup)
    yield from _another_evaluation(group.first, paper, setup)
    yield from _another_episode(group.first, paper, setup)
    yield from _unfinished(group)


def _another_model(result: Result, paper: Paper, setup: PaperSetup) -> Iterator[str]:
    model = model_of(result.recipe, setup.models)
    if model not in setup.models:
        yield f"another model: {model}; {paper.title} has {', '.join(setup.models)}"


def _another_training(group: RunGroup, paper: Paper, setup: PaperSetup) -> Iterator[str]:
    if group.first.trained and setup.steps is not None and group.first.step < setup.steps:
        yield f"fewer steps: {group.first.step}; {paper.title} trains {setup.steps}"
    seeds = len(group.seeds)
    if setup.seeds is not None and seeds < setup.seeds:
        yield f"fewer seeds: {seeds}; {paper.title} has {setup.seeds}"


def _another_evaluation(result: Result, paper: Paper, setup: PaperSetup) -> Iterator[str]:
    temperature = result.recipe.evaluation.temperature
    if setup.temperature is not None and temperature != setup.temperature:
        yield f"another temperature: {temperature:g}; {paper.title} evaluates at {setup.temperature:g}"
    questions = _questions(result)
    if setup.questions is not None and questions and questions != [setup.questions]:
        ours = " and ".join(map(str, questions))
        yield f"another number of evaluation questions: {ours}; {paper.title} asks {setup.questions}"


def _another_episode(result: Result, paper: Paper, setup: PaperSetup) -> Iterator[str]:
    turns = result.environment.max_turns
    if setup.turns is not None and turns != setup.turns:
        yield f"another limit of turns: {turns}; {paper.title} has {setup.turns}"
    settings = default_settings_of(result.environment)
    if setup.history is not None and HISTORY in settings and settings[HISTORY] != setup.history:
        yield f"another history window: {_window(settings[HISTORY])}; {paper.title} shows {setup.history} turns"


def _unfinished(group: RunGroup) -> Iterator[str]:
    for note in group.notes():
        if note.startswith("unfinished"):
            yield note


def _questions(result: Result) -> list[int]:
    """How many a split was asked, as far as that was kept; several where splits had different numbers."""
    found = set()
    for (split, _), passed in result.passes.items():
        if split != ALL_SPLITS and passed.all.questions is not None:
            found.add(passed.all.questions)
    return sorted(found)


def _window(length: Any) -> str:
    if length == WHOLE:
        return "the whole conversation"
    return f"{length} turns"


def _names(part: str, model: str) -> bool:
    """Whether a folder is called as the model, or as the hub's cache calls it."""
    folder = Path(part).name.lower()
    return folder == model.lower() or folder.endswith(f"--{model.lower()}")
