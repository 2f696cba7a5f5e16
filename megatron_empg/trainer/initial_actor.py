"""The actor that a run begins with."""

import math

from megatron_empg.actor.actor import Actor
from megatron_empg.recipe import Recipe, SftRecipe
from megatron_empg.recipe.check import check_model
from megatron_empg.trainer.phase_limits import collective_timeout


def initial_actor(recipe: Recipe | SftRecipe) -> Actor:
    """The recipe's actor with its initial weights; every rank makes its part. Raises RecipeError."""
    actor = Actor(
        check_model(recipe),
        recipe.actor,
        dtype=recipe.model.dtype,
        total_steps=recipe.total_updates,
        seed=recipe.run.seed,
        collective_timeout=math.ceil(collective_timeout(recipe)),
    )
    if recipe.model.initialise == "random":
        actor.initialise_weights(recipe.run.seed)
    else:
        actor.load_weights(recipe.model.path)
    return actor
