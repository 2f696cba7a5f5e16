"""The task source of a recipe's environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_empg.recipe import Recipe, SftRecipe

if TYPE_CHECKING:
    from megatron_empg.environments.base import TaskSource


def task_source_of(recipe: Recipe | SftRecipe) -> TaskSource:
    """Made anew; whoever made it closes it. Raises ValueError or OSError, and whatever a plug-in raises."""
    from megatron_empg.environments.base import STEP_SHARE
    from megatron_empg.environments.registry import make_task_source

    acting = recipe.environment
    step_timeout = STEP_SHARE * recipe.waits.environment if isinstance(recipe, Recipe) else None
    return make_task_source(acting.name, max_turns=acting.max_turns, step_timeout=step_timeout, **acting.settings)
