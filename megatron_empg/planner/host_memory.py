"""Main memory that a node needs while its ranks save a checkpoint: the optimizer's state passes through it."""

from megatron_empg.planner.activations import FLOAT32
from megatron_empg.planner.assumptions import GPUS_PER_NODE
from megatron_empg.planner.memory import DTYPE_BYTES
from megatron_empg.planner.shards import stage_parameters
from megatron_empg.recipe import Recipe
from megatron_empg.weights.model_config import ModelConfig


def checkpoint_host_memory(recipe: Recipe, config: ModelConfig, ranks_per_node: int = GPUS_PER_NODE) -> float:
    """Bytes on the fullest trainer node at the fullest moment of a save.

    Ranks that hold the same share out what is written. Each puts its share together in main memory, the state of an
    optimizer whole for the parameters it owns, and the writer takes a copy, so that training can go on meanwhile.
    """
    actor, size = recipe.actor, DTYPE_BYTES[recipe.model.dtype]
    state = 2 * FLOAT32 + (FLOAT32 if size < FLOAT32 else 0)
    held = max(stage_parameters(config, actor, stage).total for stage in range(actor.pipeline_parallel))
    share = held * (state + size) / (actor.data_parallel * actor.context_parallel)
    return min(actor.world_size, ranks_per_node) * 2 * share
