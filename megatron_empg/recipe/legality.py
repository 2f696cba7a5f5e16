"""Whether a recipe's layouts can be, whatever the memory: `empg train` and `empg plan` ask the same."""

from megatron_empg.actor.layout_rules import engine_faults, model_faults
from megatron_empg.recipe import Recipe, SftRecipe
from megatron_empg.weights.mapping.model_config import ModelConfig


def layout_faults(recipe: Recipe | SftRecipe, config: ModelConfig) -> list[str]:
    """Each fault names the keys, what was given and what is allowed; empty when model and layouts fit."""
    if isinstance(recipe, SftRecipe):
        return model_faults(recipe.actor, config)
    longest = recipe.rollout.max_episode_tokens
    faults = model_faults(recipe.actor, config, longest_sequence=longest)
    return faults + engine_faults(recipe.engines.tensor_parallel, config)
