"""An estimate of a step's time, to rank layouts by: arithmetic, exposed communication, idle pipeline stages."""

import math
from dataclasses import dataclass

from megatron_empg.actor.config import ActorConfig
from megatron_empg.common.dtypes import DTYPE_BYTES
from megatron_empg.common.gpus import GPUS_PER_NODE, Gpu
from megatron_empg.planner.assumptions import PLANNED, Assumptions
from megatron_empg.planner.engines import EngineMemory, mean_sequences, rollout_seconds
from megatron_empg.planner.memory import FLOAT32
from megatron_empg.planner.shards import model_parameters, stage_parameters
from megatron_empg.recipe import Recipe
from megatron_empg.weights.mapping.flops import flops_by_part
from megatron_empg.weights.mapping.model_config import ModelConfig


@dataclass(frozen=True)
class StepTime:
    """Seconds, all estimates."""

    rollout: float
    sync: float
    score: float
    update: float
    bubble: float
    """Share of the update's time in which a pipeline stage waits."""

    @property
    def total(self) -> float:
        return self.rollout + self.sync + self.score + self.update


def step_time(
    recipe: Recipe, config: ModelConfig, memory: EngineMemory, gpu: Gpu, assumed: Assumptions = PLANNED
) -> StepTime:
    """One after the other, as the loop runs them."""
    parts, count = recipe.algorithm.updates_per_batch, _microbatches(recipe, assumed)
    bubble = bubble_share(recipe.actor, count)
    bubble_of_score = bubble_share(recipe.actor, count * parts)
    again = _recomputed_seconds(recipe, config, gpu, assumed)
    arithmetic = _arithmetic_seconds(recipe, config, gpu, assumed)
    communication = _forward_communication(recipe, config, gpu, assumed)
    forward = arithmetic + communication
    # The sequence-parallel input of a linear layer is gathered once more for the weight's gradient.
    backward = 2 * arithmetic + 1.5 * communication
    every = forward + backward + again
    gradients = parts * _gradient_seconds(recipe, config, gpu)
    size = DTYPE_BYTES[recipe.model.dtype]
    sending = assumed.sync_seconds_per_gb * model_parameters(config) * size / 1e9
    return StepTime(
        rollout=rollout_seconds(recipe, config, memory, gpu, assumed),
        sync=assumed.sync_seconds + sending,
        score=forward / (1 - bubble_of_score),
        update=every / (1 - bubble) + gradients,
        bubble=bubble,
    )


def bubble_share(actor: ActorConfig, count: int) -> float:
    """Idle share of a pipeline of p stages and v chunks: (p-1) / (v·m + p-1) (arXiv 2104.04473, section 2.2)."""
    waiting = actor.pipeline_parallel - 1
    return waiting / (actor.virtual_pipeline * count + waiting)


def _microbatches(recipe: Recipe, assumed: Assumptions) -> int:
    """Of one optimizer step on one rank, episodes of mean length packed."""
    actor = recipe.actor
    of_rank = _tokens(recipe, assumed) / recipe.algorithm.updates_per_batch / actor.data_parallel
    return math.ceil(of_rank / actor.microbatch_tokens)


def _tokens(recipe: Recipe, assumed: Assumptions) -> float:
    return mean_sequences(recipe, assumed) * recipe.rollout.max_episode_tokens * assumed.episode_share


def _arithmetic_seconds(recipe: Recipe, config: ModelConfig, gpu: Gpu, assumed: Assumptions) -> float:
    """A batch's forward pass, shared out evenly."""
    return sum(_flops(recipe, config, assumed).values()) / _speed(recipe, gpu, assumed)


def _recomputed_seconds(recipe: Recipe, config: ModelConfig, gpu: Gpu, assumed: Assumptions) -> float:
    """What recomputation adds to an update: layers forward once more, or their core attention."""
    actor, flops = recipe.actor, _flops(recipe, config, assumed)
    if actor.recompute == "selective":
        return flops["attention"] / _speed(recipe, gpu, assumed)
    layers = config.num_layers // actor.chunks
    of_layers = (sum(flops.values()) - flops["head"]) / _speed(recipe, gpu, assumed)
    again = of_layers + _forward_communication(recipe, config, gpu, assumed)
    return again * actor.recomputed_layers(layers) / layers


def _flops(recipe: Recipe, config: ModelConfig, assumed: Assumptions) -> dict[str, float]:
    length = int(recipe.rollout.max_episode_tokens * assumed.episode_share)
    return {name: mean_sequences(recipe, assumed) * flops for name, flops in flops_by_part(config, length).items()}


def _speed(recipe: Recipe, gpu: Gpu, assumed: Assumptions) -> float:
    return recipe.actor.world_size * gpu.tflops * 1e12 * assumed.mfu


def _forward_communication(recipe: Recipe, config: ModelConfig, gpu: Gpu, assumed: Assumptions) -> float:
    """Tensor parallelism's two gathers and two scatters per layer, the ring of keys and values as far as attention
    does not hide it, and the stages' activations; of a batch, on one rank."""
    actor, size = recipe.actor, DTYPE_BYTES[recipe.model.dtype]
    layers = config.num_layers / actor.pipeline_parallel
    tokens = _tokens(recipe, assumed) / actor.data_parallel / actor.context_parallel
    wide, ranks = tokens * config.hidden_size * size, actor.tensor_parallel
    tensor = layers * 4 * wide * (ranks - 1) / ranks / _link(ranks, gpu)
    groups = max(1, config.num_kv_heads // ranks)
    around = (actor.context_parallel - 1) * 2 * groups * config.head_dim * size * tokens
    ring = layers * around / _link(ranks * actor.context_parallel, gpu)
    attention = _flops(recipe, config, assumed)["attention"] / _speed(recipe, gpu, assumed)
    stages = 0.0
    if actor.pipeline_parallel > 1:
        stages = 2 * actor.virtual_pipeline * wide / ranks / gpu.network
    return tensor + max(0.0, ring - attention) + stages


def _gradient_seconds(recipe: Recipe, config: ModelConfig, gpu: Gpu) -> float:
    """One optimizer step's reduction over data- and context-parallel ranks; overlapped, it hides in backward."""
    actor, size = recipe.actor, DTYPE_BYTES[recipe.model.dtype]
    ranks = actor.data_parallel * actor.context_parallel
    if ranks == 1 or actor.overlap:
        return 0.0
    held = max(stage_parameters(config, actor, stage).dense for stage in (0, actor.pipeline_parallel - 1))
    each = FLOAT32 + (size if actor.distributed_optimizer else FLOAT32)
    return held * each * (ranks - 1) / ranks / _link(actor.tensor_parallel * ranks, gpu)


def _link(ranks: int, gpu: Gpu) -> float:
    if ranks <= GPUS_PER_NODE:
        return gpu.nvlink
    return gpu.network
