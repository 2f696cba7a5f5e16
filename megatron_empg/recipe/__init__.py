"""What a run is: every key of a recipe, read, checked and explained."""

from megatron_empg.recipe.recipe import (
    Recipe,
    RecipeError,
    SftRecipe,
    dump_recipe,
    load_recipe,
    parse_recipe,
)

__all__ = [
    "Recipe",
    "RecipeError",
    "SftRecipe",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
]
