"""Whether a recipe fits its model: known before any process starts, and without importing Megatron."""

from megatron_empg.recipe import Recipe, RecipeError, SftRecipe
from megatron_empg.weights.model_config import ModelConfig, ModelConfigError


def check_model(recipe: Recipe | SftRecipe) -> ModelConfig:
    """The model's configuration, after checking that it fits the recipe's layout. Raises RecipeError."""
    try:
        config = ModelConfig.from_folder(recipe.model.path)
    except ModelConfigError as error:
        raise RecipeError(f"model.path: {error}") from None
    longest = recipe.rollout.max_episode_tokens if isinstance(recipe, Recipe) else 1
    faults = config.layout_faults(
        tensor_parallel=recipe.actor.tensor_parallel,
        pipeline_parallel=recipe.actor.pipeline_parallel,
        max_sequence_length=longest,
    )
    if faults:
        raise RecipeError("this recipe cannot be run:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return config
