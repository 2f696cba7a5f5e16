"""An engine's share: its GPU's memory between weights and key-value cache, and the time of a rollout."""

from dataclasses import dataclass

from megatron_empg.common.dtypes import DTYPE_BYTES
from megatron_empg.common.gpus import Gpu
from megatron_empg.planner.assumptions import PLANNED, Assumptions
from megatron_empg.planner.shards import model_parameters
from megatron_empg.recipe import Recipe
from megatron_empg.weights.mapping.flops import forward_flops
from megatron_empg.weights.mapping.model_config import ModelConfig


@dataclass(frozen=True)
class EngineMemory:
    """Bytes on one GPU of an engine, and what they mean for its episodes."""

    weights: float
    kv_cache: float
    """What is left for it, or what the recipe says."""
    workspace: float
    """An assumption (`Assumptions.engine_workspace`)."""
    kv_bytes_per_token: float
    episodes: float
    """Longest episodes that the cache of an engine holds at once."""
    available: float
    """What vLLM may take of the GPU."""

    @property
    def fault(self) -> str | None:
        """Why it cannot run, if it cannot."""
        short = self.weights + self.workspace + max(self.kv_cache, 0) - self.available
        if short > 0:
            return f"engine GPU: {short / 2**30:.1f} GiB over (weights {self.weights / 2**30:.1f} GiB)"
        if self.episodes < 1:
            return f"engine GPU: the key-value cache holds {self.episodes:.2f} of the longest episode"
        return None


def engine_memory(
    recipe: Recipe, config: ModelConfig, gpu_memory: float, assumed: Assumptions = PLANNED
) -> EngineMemory:
    """vLLM with the recipe's tensor-parallel size; key-value heads are copied where there are fewer than ranks."""
    size, ranks = DTYPE_BYTES[recipe.model.dtype], recipe.engines.tensor_parallel
    weights = model_parameters(config) * size / ranks
    per_token = 2.0 * config.num_layers * max(1, config.num_kv_heads // ranks) * config.head_dim * size
    available = assumed.engine_utilisation * gpu_memory
    asked = recipe.engines.kv_cache_gib
    if asked is None:
        cache = available - weights - assumed.engine_workspace
    else:
        cache = asked * 2**30
    episodes = max(0.0, cache) / (per_token * recipe.rollout.max_episode_tokens)
    return EngineMemory(weights, cache, assumed.engine_workspace, per_token, episodes, available)


def mean_sequences(recipe: Recipe, assumed: Assumptions = PLANNED) -> float:
    """Token sequences of a batch. Where each turn is one, an episode has a share of the turns that it may have."""
    episodes = recipe.rollout.groups * recipe.rollout.group_size
    return episodes * max(1.0, recipe.most_sequences * assumed.episode_share)


def longest_own_tokens(recipe: Recipe) -> int:
    """Tokens that the policy samples in the longest episode that the recipe allows."""
    by_turns = recipe.environment.max_turns * recipe.rollout.max_turn_tokens
    return min(by_turns, recipe.most_sequences * recipe.rollout.max_episode_tokens)


def rollout_seconds(
    recipe: Recipe, config: ModelConfig, memory: EngineMemory, gpu: Gpu, assumed: Assumptions = PLANNED
) -> float:
    """Seconds per batch: decoding, bound by memory or arithmetic, and reading prompts and observations once each.

    No shorter than its longest episode; dynamic sampling's further rounds are not counted.
    """
    rollout, engines = recipe.rollout, recipe.engines
    episodes, length = rollout.groups * rollout.group_size, rollout.max_episode_tokens * assumed.episode_share
    longest = longest_own_tokens(recipe)
    at_once = min(rollout.concurrency, episodes) / engines.count
    at_once = max(1.0, min(at_once, memory.episodes / assumed.episode_share))
    step = _decode_seconds(recipe, config, memory, at_once, length, gpu, assumed)
    steps = episodes * longest * assumed.episode_share / (engines.count * at_once)
    peak = gpu.tflops * 1e12 * assumed.prefill_mfu * engines.tensor_parallel * engines.count
    prefill = mean_sequences(recipe, assumed) * forward_flops(config, int(length), 0) / peak
    decode = max(steps * step, longest * step)
    return decode + prefill + recipe.environment.max_turns * assumed.turn_seconds


def _decode_seconds(
    recipe: Recipe,
    config: ModelConfig,
    memory: EngineMemory,
    at_once: float,
    length: float,
    gpu: Gpu,
    assumed: Assumptions,
) -> float:
    """One token of each of an engine's episodes, half of each already written."""
    ranks = recipe.engines.tensor_parallel
    read = memory.weights + at_once * memory.kv_bytes_per_token * length / 2
    arithmetic = at_once * forward_flops(config, 1) / ranks / (gpu.tflops * 1e12 * assumed.prefill_mfu)
    latency = 0.0
    if ranks > 1:
        latency = 2 * config.num_layers * assumed.all_reduce_latency
    return max(read / (gpu.bandwidth * assumed.decode_bandwidth), arithmetic) + latency
