"""Whether a recipe fits its model: known before any process starts, and without importing Megatron."""

from megatron_empg.recipe import ActorSection, Recipe, RecipeError, SftRecipe
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
    faults += _context_faults(recipe.actor, config) + _stage_faults(recipe.actor, config)
    if faults:
        raise RecipeError("this recipe cannot be run:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return config


def _stage_faults(actor: ActorSection, config: ModelConfig) -> list[str]:
    chunks = actor.pipeline_parallel * actor.virtual_pipeline
    if config.num_layers % actor.pipeline_parallel or not config.num_layers % chunks:
        return []
    return [
        f"actor.pipeline_parallel x actor.virtual_pipeline is {chunks}, which does not divide the model's "
        f"num_hidden_layers ({config.num_layers})"
    ]


def _context_faults(actor: ActorSection, config: ModelConfig) -> list[str]:
    """All-to-all hands out whole heads; the other exchanges leave them alone."""
    groups = max(1, config.num_kv_heads // actor.tensor_parallel)
    heads = config.num_heads // actor.tensor_parallel
    ranks = actor.context_parallel
    if actor.context_exchange != "a2a" or not (heads % ranks or groups % ranks):
        return []
    return [
        f"actor.context_exchange is a2a, which splits the {heads} heads and {groups} key-value groups of a "
        f"tensor-parallel rank over actor.context_parallel ({ranks}) ranks, and {ranks} does not divide both; "
        "leave it out"
    ]
