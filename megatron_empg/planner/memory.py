"""A trainer rank's memory, from the shapes of what it holds; nothing here is fitted to a measurement."""

import math
from dataclasses import dataclass, fields

from megatron_empg.actor.config import ActorConfig
from megatron_empg.common.dtypes import DTYPE_BYTES
from megatron_empg.planner.activations import (
    FLOAT32,
    MicrobatchShape,
    Spec,
    layer_activations,
    norm_bytes,
    sequence_share,
)
from megatron_empg.planner.shards import ParameterCounts, stage_parameters
from megatron_empg.planner.transfer import transfer_bytes
from megatron_empg.recipe import Recipe
from megatron_empg.vocab_parallel.chunk import default_chunk
from megatron_empg.weights.mapping.model_config import ModelConfig

CONTEXT_BYTES = 3 * 2**30
"""Allowance for what no formula gives: CUDA context and kernels, NCCL's channels, cuBLAS workspaces."""
FRAGMENTATION = 0.05
"""Allowance: share of activations and buffers that the caching allocator holds beyond them."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank at the peak of an update."""

    weights: float
    gradients: float
    """Float32 main gradients, whole on every rank."""
    optimizer: float
    """Adam's two moments and, under bfloat16, the float32 main weights."""
    activations: float
    """Kept for backward, of all microbatches in flight, and the layer that is being recomputed."""
    logits: float
    """One chunk of the fused LM head and its gradient; 0 but on the last stage."""
    buffers: float
    """Pipeline stages' inputs and outputs, a layer's gradients in backward, the largest weight's gradient, and
    each model chunk's table of rotary positions."""
    transfer: float
    """To send weights to the engines, as far as it is more than activations and logits, which are free again by
    then; 0 on CPU."""
    allowance: float
    """`CONTEXT_BYTES` and `FRAGMENTATION`; an assumption."""

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def rank_memory(
    recipe: Recipe, config: ModelConfig, stage: int, *, spec: Spec = "transformer_engine", device: str = "cuda"
) -> RankMemory:
    """Memory of a rank of pipeline stage ``stage``, with microbatches as full as the recipe lets them be."""
    actor, size = recipe.actor, DTYPE_BYTES[recipe.model.dtype]
    held, batch = stage_parameters(config, actor, stage), full_microbatch(recipe)
    last = stage == actor.pipeline_parallel - 1
    activations = saved_activations(recipe, config, stage, batch, microbatches(recipe), spec)
    logits = 0.0
    if last:
        logits = _logits(config, actor, batch, size, device)
    buffers = _buffers(recipe, config, stage, batch, held)
    transfer = 0.0
    if device == "cuda":
        sending = transfer_bytes(config, size, actor.tensor_parallel, actor.pipeline_parallel, stage)
        transfer = max(0.0, sending - activations - logits)
    fragments = FRAGMENTATION * (activations + logits + buffers)
    return RankMemory(
        weights=held.total * size,
        gradients=held.total * FLOAT32,
        optimizer=optimizer_bytes(held, actor, size),
        activations=activations,
        logits=logits,
        buffers=buffers,
        transfer=transfer,
        allowance=CONTEXT_BYTES + fragments,
    )


def optimizer_bytes(held: ParameterCounts, actor: ActorConfig, dtype_bytes: int) -> float:
    """Shared out by the distributed optimizer among the ranks that hold the same parameters."""
    each = 2 * FLOAT32
    if dtype_bytes < FLOAT32:
        each += FLOAT32
    if not actor.distributed_optimizer:
        return held.total * each
    copies = actor.data_parallel * actor.context_parallel
    of_experts = actor.tensor_parallel * copies / actor.expert_parallel
    return each * (held.dense / copies + held.experts / of_experts)


def full_microbatch(recipe: Recipe) -> MicrobatchShape:
    """A microbatch of as many of the longest episodes as it holds, filled up by a shorter one."""
    longest = recipe.rollout.max_episode_tokens
    whole, rest = divmod(recipe.actor.microbatch_tokens, longest)
    lengths = (longest,) * whole
    if rest:
        lengths += (rest,)
    return MicrobatchShape(lengths, recipe.actor.context_parallel)


def microbatches(recipe: Recipe) -> int:
    """Most that one rank works on in an optimizer step: every sequence of every episode of full length."""
    rollout, actor = recipe.rollout, recipe.actor
    episodes = rollout.groups * rollout.group_size / recipe.algorithm.updates_per_batch / actor.data_parallel
    sequences = episodes * recipe.most_sequences
    count = math.ceil(sequences / (actor.microbatch_tokens // rollout.max_episode_tokens))
    stages = 1
    if actor.virtual_pipeline > 1:
        stages = actor.pipeline_parallel
    return math.ceil(count / stages) * stages


def chunks_in_flight(actor: ActorConfig, stage: int, count: int) -> int:
    """Forward passes of a model chunk that wait for their backward pass at most, with ``count`` microbatches.

    Megatron's schedules: 1F1B (arXiv 2104.04473, section 2.2) keeps one for each stage from this to the last, the
    interleaved one (section 2.2.2) twice that and a round of microbatches for every further chunk.
    """
    after = actor.pipeline_parallel - stage - 1
    if actor.virtual_pipeline > 1:
        after = 2 * after + (actor.virtual_pipeline - 1) * actor.pipeline_parallel
    return min(count * actor.virtual_pipeline, after + 1)


def saved_activations(
    recipe: Recipe, config: ModelConfig, stage: int, batch: MicrobatchShape, count: int, spec: Spec
) -> float:
    """Bytes that autograd holds at its fullest: the chunks in flight, and what comes and goes on top of them.

    On top lie the head's tensors at the end of the forward pass, and, once they are gone, a layer computed again.
    """
    actor, size = recipe.actor, DTYPE_BYTES[recipe.model.dtype]
    layer = layer_activations(config, actor, batch, spec, size)
    layers = config.num_layers // actor.chunks
    again = actor.recomputed_layers(layers)
    kept, on_top = layer.whole, 0.0
    if actor.recompute == "selective":
        kept, on_top = layer.rest, layer.core_attention
    elif again == layers:
        # Where some layers are kept, those computed again come last in backward, when a kept one has made room.
        on_top = layer.whole
    chunk = again * layer.input + (layers - again) * kept
    ends = _ends(config, actor, stage, batch, spec, size)
    return chunks_in_flight(actor, stage, count) * chunk + max(on_top, ends)


def _ends(
    config: ModelConfig, actor: ActorConfig, stage: int, batch: MicrobatchShape, spec: Spec, dtype_bytes: int
) -> float:
    """Outside of the layers: token ids, and on the last stage the final norm, the head's input and vectors."""
    kept = 0.0
    if stage == 0:
        kept = 9.0 * batch.tokens
    if stage == actor.pipeline_parallel - 1:
        # Of each token its target (8 bytes) and mask (1); of an own token its place (8) and three statistics.
        vectors = 9 + 8 + 3 * FLOAT32
        kept += (
            sequence_share(actor, batch.tokens) * norm_bytes(config, spec, dtype_bytes) + vectors * batch.tokens
        )
    return kept


def _logits(
    config: ModelConfig, actor: ActorConfig, batch: MicrobatchShape, dtype_bytes: int, device: str
) -> float:
    """A chunk in float32, its gradient in half precision, and the hidden states and their gradient whole."""
    columns = config.padded_vocab_size(actor.tensor_parallel) // actor.tensor_parallel
    chunk = min(batch.tokens, default_chunk(batch.tokens, columns, device))
    each = FLOAT32 + (dtype_bytes if dtype_bytes < FLOAT32 else 0)
    return float(chunk * columns * each + 2 * batch.tokens * config.hidden_size * dtype_bytes)


def _buffers(
    recipe: Recipe, config: ModelConfig, stage: int, batch: MicrobatchShape, held: ParameterCounts
) -> float:
    actor, size = recipe.actor, DTYPE_BYTES[recipe.model.dtype]
    share = sequence_share(actor, batch.tokens) * config.hidden_size * size
    stages = 0.0
    if actor.pipeline_parallel > 1:
        stages = 2 * chunks_in_flight(actor, stage, microbatches(recipe)) * share
    if config.experts is None:
        inner = batch.tokens * config.intermediate_size / actor.tensor_parallel
    else:
        routed = sequence_share(actor, batch.tokens) * config.experts.per_token
        inner = routed * (config.experts.intermediate_size + config.hidden_size)
    # Gradients of gate, up and their product, of the residual stream twice; the input gathered, and its gradient.
    backward = 3 * inner * size + 2 * share + 2 * batch.tokens * config.hidden_size * size
    rotary = actor.virtual_pipeline * config.max_position_embeddings * config.head_dim * FLOAT32
    return stages + backward + held.largest * size + rotary
