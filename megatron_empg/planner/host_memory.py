"""Main memory that a node needs while its ranks save a checkpoint: what they write passes through it."""

from megatron_empg.actor.config import ActorConfig
from megatron_empg.common.dtypes import DTYPE_BYTES
from megatron_empg.common.gpus import GPUS_PER_NODE
from megatron_empg.planner.activations import FLOAT32
from megatron_empg.planner.shards import stage_parameters
from megatron_empg.recipe import Recipe
from megatron_empg.weights.mapping.model_config import ModelConfig


def checkpoint_host_memory(recipe: Recipe, config: ModelConfig, ranks_per_node: int = GPUS_PER_NODE) -> float:
    """Bytes on the fullest trainer node at the fullest moment of a save; loading takes no more.

    Ranks that hold the same parameters share them out: each copies its part of the weights and of the optimizer's
    state to main memory, where it stays until it is written.
    """
    actor = recipe.actor
    of_each = DTYPE_BYTES[recipe.model.dtype] + _state_bytes(recipe)
    written = max(_written(config, actor, stage) for stage in range(actor.pipeline_parallel))
    return min(actor.world_size, ranks_per_node) * of_each * written


def _state_bytes(recipe: Recipe) -> int:
    """Of one parameter: two moments, and main weights apart from the model's, which the distributed optimizer
    always keeps."""
    apart = recipe.actor.distributed_optimizer or DTYPE_BYTES[recipe.model.dtype] < FLOAT32
    return (3 if apart else 2) * FLOAT32


def _written(config: ModelConfig, actor: ActorConfig, stage: int) -> float:
    """Parameters that one rank of the stage writes; none is cut."""
    held = stage_parameters(config, actor, stage)
    copies = actor.data_parallel * actor.context_parallel
    of_experts = actor.tensor_parallel * copies / actor.expert_parallel
    return max(held.dense / copies + held.experts / of_experts, held.largest)
