"""The command of slurm/prepare.sh that fetches what a recipe is played with, its model among it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from megatron_empg.recipe.recipe import Recipe, SftRecipe
from megatron_empg.weights.mapping.known_models import known_model

PREPARATION_OF: Mapping[str, str] = {
    "deep_search": "deepsearch",
    "alfworld": "alfworld",
    "webshop": "webshop",
    "scienceworld": "scienceworld",
}
"""What slurm/prepare.sh calls what it fetches, by environment; others need a model alone."""
DEFAULT_FOLDER = Path("data")
"""Where jobs look for what was prepared, in a folder of the preparation's name."""


def prepare_command(recipe: Recipe | SftRecipe, folder: Path | None = None) -> str | None:
    """What prepares `folder`, or the one that jobs look in; None for an environment that has no preparation."""
    preparation = PREPARATION_OF.get(recipe.environment.name)
    if preparation is None:
        return None
    known = known_model(recipe.model.path)
    model = ""
    if known is not None:
        model = f" --model {known.hub_id}"
    return f"bash slurm/prepare.sh {preparation} {folder or DEFAULT_FOLDER / preparation}{model}"
