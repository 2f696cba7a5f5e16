"""Which layouts can be: by their own sizes, for a batch, for a model, on the ranks and the machine at hand.

Recipe, planner and actor ask here, before Megatron is imported. A fault is a sentence in a user's words: the key
of the recipe, its value, the rule and the fix. No faults means that the layout can be. What a model's tensors can
be cut into at all is known to `ModelConfig.layout_faults`, which conversions ask too.
"""

from collections.abc import Sequence

from megatron_empg.actor.config import ActorConfig
from megatron_empg.weights.mapping.model_config import ModelConfig

_NEEDED = (
    ("sequence_parallel", "tensor_parallel", "it splits over tensor-parallel ranks"),
    ("virtual_pipeline", "pipeline_parallel", "it cuts each pipeline stage into chunks"),
    ("context_exchange", "context_parallel", "it is between context-parallel ranks"),
)
"""(key, the degree without which it means nothing, why)."""

_KEYS = {
    "tensor_parallel": "actor.tensor_parallel",
    "pipeline_parallel": "actor.pipeline_parallel",
    "max_sequence_length": "rollout.max_episode_tokens",
}
"""What a recipe calls the sizes of `ModelConfig.layout_faults`."""


def size_faults(actor: ActorConfig) -> list[str]:
    """The faults of the parallel sizes alone, whatever the model and the machine."""
    faults = []
    for given, needed, does in _NEEDED:
        value = getattr(actor, given)
        if value != ActorConfig.model_fields[given].default and getattr(actor, needed) == 1:
            faults.append(
                f"actor.{given} is {value} with actor.{needed} 1: {does}, so raise {needed} or leave {given} out"
            )
    if actor.expert_parallel > 1 and actor.stage_ranks % actor.expert_parallel:
        faults.append(
            f"actor.expert_parallel is {actor.expert_parallel}, which does not divide a stage's "
            f"{actor.stage_ranks} ranks (actor.tensor_parallel x context_parallel x data_parallel)"
        )
    return faults


def episode_faults(actor: ActorConfig, tokens: int) -> list[str]:
    """The faults with episodes of up to so many tokens: a microbatch must hold the longest one."""
    if tokens <= actor.longest_sequence:
        return []
    return [
        f"rollout.max_episode_tokens is {tokens}, more than a microbatch can hold ({actor.longest_sequence}: "
        "actor.max_tokens_per_microbatch x actor.context_parallel, in multiples of twice the second where that is "
        "above 1); raise the microbatch or lower the episode"
    ]


def batch_faults(actor: ActorConfig, episodes: int, because: str) -> list[str]:
    """The faults with optimizer steps of so many episodes; ``because`` names the keys that say so.

    Every rank must get an episode, and every pipeline stage something to do.
    """
    wanted = actor.data_parallel * actor.pipeline_parallel
    if episodes >= wanted:
        return []
    return [
        f"an optimizer step has {episodes} episodes ({because}), too few for the layout: actor.data_parallel "
        f"{actor.data_parallel} x actor.pipeline_parallel {actor.pipeline_parallel} needs {wanted}, one for each "
        "stage of each pipeline"
    ]


def model_faults(actor: ActorConfig, config: ModelConfig, *, longest_sequence: int = 1) -> list[str]:
    """The faults of the layout for this model, which reads sequences of up to so many tokens."""
    cut = config.layout_faults(
        tensor_parallel=actor.tensor_parallel,
        pipeline_parallel=actor.pipeline_parallel,
        max_sequence_length=longest_sequence,
    )
    faults = [fault.told(_KEYS[fault.size]) for fault in cut]
    return faults + _context_faults(actor, config) + _chunk_faults(actor, config) + _expert_faults(actor, config)


def engine_faults(tensor_parallel: int, config: ModelConfig) -> list[str]:
    """The faults of an engine over ``tensor_parallel`` GPUs.

    vLLM splits heads evenly, and lets whole groups of ranks share a key-value head.
    """
    kv_heads = config.num_kv_heads
    if config.num_heads % tensor_parallel:
        return [
            f"engines.tensor_parallel is {tensor_parallel}, which does not divide the model's num_attention_heads "
            f"({config.num_heads})"
        ]
    if kv_heads % tensor_parallel and tensor_parallel % kv_heads:
        return [
            f"engines.tensor_parallel is {tensor_parallel}, neither a divisor nor a multiple of the model's "
            f"num_key_value_heads ({kv_heads})"
        ]
    return []


def rank_faults(actor: ActorConfig, started: int) -> list[str]:
    """The faults of the layout where so many ranks were started."""
    if started == actor.world_size:
        return []
    return [
        f"the layout needs {actor.world_size} ranks (tensor {actor.tensor_parallel} x pipeline "
        f"{actor.pipeline_parallel} x context {actor.context_parallel} x data {actor.data_parallel}) but "
        f"{started} were started"
    ]


def exchange_faults(actor: ActorConfig, possible: Sequence[str], dtype: str) -> list[str]:
    """The faults of the layout where context-parallel ranks have these exchanges in this dtype."""
    if actor.context_exchange is None or actor.context_exchange in possible:
        return []
    return [
        f"actor.context_exchange is {actor.context_exchange}, which this machine cannot do on packed sequences in "
        f"{dtype}; it can do {' and '.join(possible)}"
    ]


def heads_divide(heads: int, groups: int, ranks: int) -> bool:
    """Whether all-to-all can give each context rank whole heads and whole key-value groups of a tensor rank's."""
    return heads % ranks == 0 and groups % ranks == 0


def _context_faults(actor: ActorConfig, config: ModelConfig) -> list[str]:
    """All-to-all hands out whole heads; the other exchanges leave them alone."""
    groups = max(1, config.num_kv_heads // actor.tensor_parallel)
    heads = config.num_heads // actor.tensor_parallel
    ranks = actor.context_parallel
    if actor.context_exchange != "a2a" or heads_divide(heads, groups, ranks):
        return []
    return [
        f"actor.context_exchange is a2a, which splits the {heads} heads and {groups} key-value groups of a "
        f"tensor-parallel rank over actor.context_parallel ({ranks}) ranks, and {ranks} does not divide both; "
        "leave it out"
    ]


def _chunk_faults(actor: ActorConfig, config: ModelConfig) -> list[str]:
    if config.num_layers % actor.pipeline_parallel or not config.num_layers % actor.chunks:
        return []
    return [
        f"actor.pipeline_parallel x actor.virtual_pipeline is {actor.chunks}, which does not divide the model's "
        f"num_hidden_layers ({config.num_layers})"
    ]


def _expert_faults(actor: ActorConfig, config: ModelConfig) -> list[str]:
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
