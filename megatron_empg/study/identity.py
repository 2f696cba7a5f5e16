"""What makes two runs alike but for their seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from megatron_empg.environments.registry import place_settings
from megatron_empg.environments.settings import names_a_place
from megatron_empg.recipe import Recipe, load_recipe
from megatron_empg.recipe.identity import BY_CONTENT, SETTINGS, describe, flat, may_change
from megatron_empg.study.errors import StudyError

SHARED = ["evaluation.every=0"]
"""Overrides of every run: it is evaluated before the first step and behind the last one alone."""
SEED = "run.seed"
DECIDING = ("run.steps", "actor.optimizer.*", "evaluation.*")
"""Keys that a run may change when it is continued, and that make another result all the same."""


def as_run(recipe: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe as every seed has it, with no more questions than each of its splits has.

    Raises RecipeError for what is no recipe, StudyError where there is nothing to evaluate on.
    """
    given = [*SHARED, *overrides]
    asked = load_recipe(recipe, given)
    try:
        source = asked.task_source()
        there = [len(source.tasks(split)) for split in asked.evaluation.splits]
    except (ValueError, OSError) as error:
        raise StudyError(f"environment.settings: {error}") from None
    questions = min(asked.evaluation.questions, *there)
    if not questions:
        raise StudyError(
            f"evaluation.questions is {asked.evaluation.questions}, and the splits {asked.evaluation.splits} have "
            f"{there} tasks: a gain is told by questions that are asked before and after; ask at least 1 of each"
        )
    return load_recipe(recipe, [*given, f"evaluation.questions={questions}"])


def identity_of(recipe: Recipe) -> str:
    """What is alike in runs that differ in their seed alone: keys by their values, model and data by content."""
    described = describe(recipe)
    places = [SETTINGS + name for name in place_settings(recipe.environment.name)]
    values = described["defaults"] | flat(recipe.model_dump(mode="json"), Recipe)
    keys = {key: value for key, value in values.items() if decides(key, places)}
    data = {name: entry["sha256"] for name, entry in described["data"].items()}
    told = json.dumps([keys, described["model"], data], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def decides(key: str, places: Sequence[str]) -> bool:
    """Whether another value of a key makes another run, beside its seed."""
    if key == SEED or key in BY_CONTENT or names_a_place(key, places):
        return False
    return not may_change(key) or any(fnmatchcase(key, pattern) for pattern in DECIDING)
