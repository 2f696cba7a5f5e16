"""The setting of a recipe on GPUs that nobody has measured yet: by the planner's assumptions."""

from dataclasses import dataclass, replace
from typing import Any

from megatron_empg.common.gpus import Gpu
from megatron_empg.planner.assumptions import PLANNED, Assumptions
from megatron_empg.planner.engines import EngineMemory, engine_memory, longest_own_tokens, mean_sequences
from megatron_empg.planner.simulation.engine import EngineRates
from megatron_empg.planner.simulation.setting import SimulationSetting
from megatron_empg.planner.simulation.workload import AssumedWorkload, PlannedTurn
from megatron_empg.planner.timing import step_time
from megatron_empg.recipe import Recipe
from megatron_empg.weights.mapping.flops import forward_flops
from megatron_empg.weights.mapping.model_config import ModelConfig

MOST_SLOTS = 1024
"""Sequences that an engine of a run takes at once, at most."""
BLOCK_TOKENS = 16
"""vLLM's default on GPU: tokens of a block of its prefix cache."""


@dataclass(frozen=True)
class Machine:
    """What a recipe runs on: the model's shape, the GPU, and the bytes of it that can be used."""

    config: ModelConfig
    gpu: Gpu
    gpu_memory: float


def assumed_setting(
    recipe: Recipe, machine: Machine, assumed: Assumptions = PLANNED, **changes: Any
) -> SimulationSetting:
    """The recipe as it stands but at lag 0, with `changes` to the setting."""
    memory = engine_memory(recipe, machine.config, machine.gpu_memory, assumed)
    time = step_time(recipe, machine.config, memory, machine.gpu, assumed)
    rollout, algorithm = recipe.rollout, recipe.algorithm
    tokens = mean_sequences(recipe, assumed) * rollout.max_episode_tokens * assumed.episode_share
    train_token_seconds = (time.score + time.update) / tokens
    cache_tokens = max(0.0, memory.kv_cache) / memory.kv_bytes_per_token
    setting = SimulationSetting(
        workload=assumed_workload(recipe, assumed),
        rates=assumed_rates(recipe, machine, memory, assumed),
        engines=recipe.engines.count,
        slots=min(MOST_SLOTS, rollout.concurrency),
        cache_tokens=cache_tokens,
        concurrency=rollout.concurrency,
        groups=rollout.groups,
        group_size=rollout.group_size,
        train_token_seconds=train_token_seconds,
        train_fixed_seconds=0.0,
        sync_seconds=time.sync,
        rounds=algorithm.generation_rounds,
        asked_by_wanted=algorithm.asked_by_wanted,
    )
    return replace(setting, **changes)


def assumed_workload(recipe: Recipe, assumed: Assumptions) -> AssumedWorkload:
    """Episodes of any number of turns up to the limit, each as long as it may be; together they reach the
    recipe's longest episode, and are `episode_share` of it in the mean."""
    turns, rollout = recipe.environment.max_turns, recipe.rollout
    own = max(1, round(longest_own_tokens(recipe) / turns))
    if recipe.most_sequences > 1:
        read = max(1, round(rollout.max_episode_tokens * assumed.episode_share) - own)
    else:
        read = max(1, round(rollout.max_episode_tokens / turns) - own)
    turn = PlannedTurn(read, own, assumed.turn_seconds)
    return AssumedWorkload(turns, assumed.episode_share, turn, anew=recipe.most_sequences > 1)


def assumed_rates(recipe: Recipe, machine: Machine, memory: EngineMemory, assumed: Assumptions) -> EngineRates:
    """Rates as in the plan's rollout: memory or arithmetic, whichever is slower, and the ranks' all-reduces."""
    config, gpu, ranks = machine.config, machine.gpu, recipe.engines.tensor_parallel
    bandwidth = gpu.bandwidth * assumed.decode_bandwidth
    speed = gpu.tflops * 1e12 * assumed.prefill_mfu * ranks
    length = max(1, int(recipe.rollout.max_episode_tokens * assumed.episode_share))
    read_flops = forward_flops(config, length, 0) / length
    all_reduces = 0.0
    if ranks > 1:
        all_reduces = 2 * config.num_layers * assumed.all_reduce_latency
    return EngineRates(
        weights_seconds=memory.weights / bandwidth,
        context_seconds=memory.kv_bytes_per_token / bandwidth,
        sequence_seconds=forward_flops(config, 1) / speed,
        fixed_seconds=all_reduces,
        read_seconds=read_flops / speed,
        block_tokens=BLOCK_TOKENS,
    )
