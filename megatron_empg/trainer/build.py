"""From a recipe to its parts; every recipe key that the actor reads is read here."""

import math

from megatron_empg.actor.actor import Actor
from megatron_empg.actor.layout import Layout
from megatron_empg.actor.model import Execution
from megatron_empg.actor.optimizer import OptimizerSettings
from megatron_empg.recipe import ActorSection, Recipe, SftRecipe
from megatron_empg.recipe.check import check_model
from megatron_empg.trainer.phases import collective_timeout


def build_actor(recipe: Recipe | SftRecipe) -> Actor:
    """The actor with its initial weights, on every rank."""
    settings = recipe.actor
    updates = recipe.algorithm.updates_per_batch if isinstance(recipe, Recipe) else 1
    actor = Actor(
        check_model(recipe),
        layout_of(settings),
        OptimizerSettings(**settings.optimizer.model_dump(), total_steps=recipe.run.steps * updates),
        Execution(
            dtype=recipe.model.dtype,
            recompute=settings.recompute,
            recompute_layers=settings.recompute_layers,
            distributed_optimizer=settings.distributed_optimizer,
            overlap=settings.overlap,
            context_exchange=settings.context_exchange,
        ),
        max_tokens_per_microbatch=settings.max_tokens_per_microbatch,
        seed=recipe.run.seed,
        collective_timeout=math.ceil(collective_timeout(recipe)),
    )
    if recipe.model.initialise == "random":
        actor.initialise_weights(recipe.run.seed)
    else:
        actor.load_weights(recipe.model.path)
    return actor


def layout_of(actor: ActorSection) -> Layout:
    """The parallel sizes that a recipe's actor section names."""
    return Layout(
        tensor=actor.tensor_parallel,
        pipeline=actor.pipeline_parallel,
        data=actor.data_parallel,
        sequence_parallel=actor.sequence_parallel,
        context=actor.context_parallel,
        virtual_pipeline=actor.virtual_pipeline,
        expert=actor.expert_parallel,
    )
