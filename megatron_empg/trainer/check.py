"""Whether a recipe can be run: known before any process starts, and without importing Megatron."""

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


def check_recipe(recipe: Recipe | SftRecipe) -> ModelConfig:
    """The same, and that its tasks and its logging can be had. Raises RecipeError."""
    from megatron_empg.environments.registry import make_task_source
    from megatron_empg.trainer.metrics import MetricsError, check_writers

    config = check_model(recipe)
    try:
        acting = recipe.environment
        make_task_source(acting.name, max_turns=acting.max_turns, **acting.settings)
        check_writers(tensorboard=recipe.logging.tensorboard, wandb=recipe.logging.wandb)
    except (ValueError, OSError) as error:
        raise RecipeError(f"environment: {error}") from None
    except MetricsError as error:
        raise RecipeError(str(error)) from None
    return config
