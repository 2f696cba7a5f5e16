"""Why a recipe's layout cannot be, whatever the memory: the launcher's own check."""

from megatron_empg.recipe import ActorSection, EngineSection, Recipe, SftRecipe
from megatron_empg.weights.mapping.model_config import ModelConfig

_KEYS = {
    "tensor_parallel": "actor.tensor_parallel",
    "pipeline_parallel": "actor.pipeline_parallel",
    "max_sequence_length": "rollout.max_episode_tokens",
}
"""What a recipe calls the sizes of `ModelConfig.layout_faults`."""


def layout_faults(recipe: Recipe | SftRecipe, config: ModelConfig) -> list[str]:
    """Each fault names the keys, what was given and what is allowed; empty when model and layout fit."""
    actor, longest, engines = recipe.actor, 1, []
    if isinstance(recipe, Recipe):
        longest, engines = recipe.rollout.max_episode_tokens, engine_faults(recipe.engines, config)
    faults = config.layout_faults(
        tensor_parallel=actor.tensor_parallel,
        pipeline_parallel=actor.pipeline_parallel,
        max_sequence_length=longest,
    )
    return (
        [fault.told(_KEYS[fault.size]) for fault in faults]
        + _context_faults(actor, config)
        + _stage_faults(actor, config)
        + _expert_faults(actor, config)
        + engines
    )


def engine_faults(engines: EngineSection, config: ModelConfig) -> list[str]:
    """vLLM splits heads evenly, and lets whole groups of ranks share a key-value head."""
    size, kv_heads = engines.tensor_parallel, config.num_kv_heads
    if config.num_heads % size:
        return [
            f"engines.tensor_parallel is {size}, which does not divide the model's num_attention_heads "
            f"({config.num_heads})"
        ]
    if kv_heads % size and size % kv_heads:
        return [
            f"engines.tensor_parallel is {size}, neither a divisor nor a multiple of the model's "
            f"num_key_value_heads ({kv_heads})"
        ]
    return []


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


def _expert_faults(actor: ActorSection, config: ModelConfig) -> list[str]:
    if config.experts is None:
        if actor.expert_parallel == 1:
            return []
        return [f"actor.expert_parallel is {actor.expert_parallel}, but the model has no experts; leave it out"]
    faults = []
    if config.experts.number % actor.expert_parallel:
        faults.append(
            f"actor.expert_parallel is {actor.expert_parallel}, which does not divide the model's experts "
            f"({config.experts.number})"
        )
    if actor.tensor_parallel > 1 and not actor.sequence_parallel:
        faults.append(
            f"actor.sequence_parallel is false with actor.tensor_parallel {actor.tensor_parallel}: under tensor "
            "parallelism Megatron trains experts only with it, so set it to true"
        )
    return faults
