"""The recipes that are rehearsed: every file in recipes/."""

from pathlib import Path

import yaml

from megatron_empg.recipe import Recipe, SftRecipe, load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def read(path: Path) -> Recipe | SftRecipe:
    """The recipe, of the kind that its sections say."""
    is_warm_up = "sft" in yaml.safe_load(path.read_text(encoding="utf-8"))
    return load_recipe(path, kind=SftRecipe) if is_warm_up else load_recipe(path)
