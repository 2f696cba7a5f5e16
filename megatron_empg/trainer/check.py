"""Whether a recipe fits its model: known before any process starts, and without importing Megatron."""

from megatron_empg.planner.legality import layout_faults
from megatron_empg.recipe import Recipe, RecipeError, SftRecipe
from megatron_empg.weights.model_config import ModelConfig, ModelConfigError


def check_model(recipe: Recipe | SftRecipe) -> ModelConfig:
    """The model's configuration, after checking that it fits the recipe's layout. Raises RecipeError."""
    try:
        config = ModelConfig.from_folder(recipe.model.path)
    except ModelConfigError as error:
        raise RecipeError(f"model.path: {error}") from None
    faults = layout_faults(recipe, config)
    if faults:
        raise RecipeError("this recipe cannot be run:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return config
