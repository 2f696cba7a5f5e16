"""Activations that a layer's forward pass keeps for its backward pass, tensor by tensor.

Two implementations of Megatron's layer are counted: ``local`` as the actor runs it on CPU (torch's RMSNorm in
float32 steps, rotary positions and SwiGLU unfused, SDPA), and ``transformer_engine`` as on GPU (norm fused with
the linear layer behind it, fused rotary positions and SwiGLU, flash attention). Counts are of what autograd
saves, each storage once; buffers that live within one operation are not here (see `megatron_empg.planner.memory`).
"""

from dataclasses import dataclass
from typing import Literal

from megatron_empg.actor.config import ActorConfig
from megatron_empg.weights.mapping.model_config import ModelConfig

Spec = Literal["local", "transformer_engine"]
FLOAT32 = 4


@dataclass(frozen=True)
class MicrobatchShape:
    """What a rank works on at once."""

    lengths: tuple[int, ...]
    """Of the sequences, over all context-parallel ranks; padded."""
    context: int = 1

    @property
    def tokens(self) -> int:
        """A rank's share."""
        return sum(self.lengths) // self.context


@dataclass(frozen=True)
class LayerWidths:
    """A layer's widths on one tensor-parallel rank, in elements per token."""

    query: int
    key: int
    """The same as the values'."""
    projected: int
    """Of the query-key-value tensor that the values are a view of."""
    inner: int
    heads: int
    kv_heads: int

    @classmethod
    def of(cls, config: ModelConfig, tensor_parallel: int) -> "LayerWidths":
        heads, kv_heads = config.num_heads // tensor_parallel, max(1, config.num_kv_heads // tensor_parallel)
        # Ranks that share a key-value head gather all heads' projections first.
        shares = 1
        if config.num_kv_heads >= tensor_parallel:
            shares = tensor_parallel
        return cls(
            query=heads * config.head_dim,
            key=kv_heads * config.head_dim,
            projected=config.qkv_rows // shares,
            inner=config.intermediate_size // tensor_parallel,
            heads=heads,
            kv_heads=kv_heads,
        )


@dataclass(frozen=True)
class LayerActivations:
    """Bytes that one layer keeps of one microbatch."""

    input: float
    """The residual stream: all that full recomputation keeps."""
    core_attention: float
    """Inside core attention: what selective recomputation does not keep."""
    rest: float
    """Everything else, the input counted as the first norm keeps it."""

    @property
    def whole(self) -> float:
        return self.core_attention + self.rest


def layer_activations(
    config: ModelConfig, actor: ActorConfig, batch: MicrobatchShape, spec: Spec, dtype_bytes: int
) -> LayerActivations:
    """What a layer keeps, without recomputation."""
    tokens = batch.tokens
    split = sequence_share(actor, tokens)
    width = LayerWidths.of(config, actor.tensor_parallel)
    norms = 2 * split * norm_bytes(config, spec, dtype_bytes)
    attention = _attention(config, width, tokens, spec, dtype_bytes)
    core, kept_for_core = _core_attention(actor, width, batch, spec, dtype_bytes)
    rest = norms + attention + kept_for_core + _feed_forward(config, width, tokens, split, spec, dtype_bytes)
    return LayerActivations(split * config.hidden_size * dtype_bytes, core, rest)


def norm_bytes(config: ModelConfig, spec: Spec, dtype_bytes: int) -> float:
    """A token's, of a norm and the linear layer behind it: the input, its inverse root mean square, the output.

    torch's RMSNorm works on a float32 copy of its input, and keeps the normalised values beside it.
    """
    if spec == "local":
        inside = 2 * FLOAT32
    else:
        inside = dtype_bytes
    return config.hidden_size * (inside + dtype_bytes) + FLOAT32


def sequence_share(actor: ActorConfig, tokens: int) -> float:
    """Tokens between the tensor-parallel layers, which sequence parallelism splits over their ranks."""
    if actor.sequence_parallel:
        return tokens / actor.tensor_parallel
    return tokens


def _attention(config: ModelConfig, width: LayerWidths, tokens: int, spec: Spec, dtype_bytes: int) -> float:
    """Around core attention: rotary positions, the norms of queries and keys, the output projection's input."""
    kept = width.query * dtype_bytes
    if spec == "local":
        kept += 4 * config.head_dim * dtype_bytes  # sine and cosine, for queries and for keys
    if config.qk_norm:
        kept += (width.heads + width.kv_heads) * FLOAT32
        kept += (width.query + width.key) * 2 * FLOAT32 if spec == "local" else width.query * dtype_bytes
    return tokens * kept


def _core_attention(
    actor: ActorConfig, width: LayerWidths, batch: MicrobatchShape, spec: Spec, dtype_bytes: int
) -> tuple[float, float]:
    """(kept inside, its inputs): rotated queries and keys, and the projection that holds the values.

    Flash attention's output is the projection's input, counted there; SDPA's is copied first.
    """
    tokens = batch.tokens
    statistics = tokens * width.heads * FLOAT32
    inputs = tokens * (width.query + width.key + width.projected) * dtype_bytes
    if spec == "transformer_engine":
        return statistics, inputs
    inside = statistics + tokens * width.query * dtype_bytes
    if batch.context == 1:
        return inside, inputs
    if actor.context_exchange == "a2a":  # copies of all three after the exchange
        exchanged = tokens * (width.query + 2 * width.key) * dtype_bytes
        if actor.recompute == "selective":
            return (inside + exchanged, inputs)
        return (inside, exchanged)
    gathered = 2 * width.key * _key_rows(batch) * dtype_bytes + _masks(batch) * dtype_bytes
    if actor.recompute == "selective":
        return inside + gathered, inputs
    return inside, tokens * width.query * dtype_bytes + gathered


def _key_rows(batch: MicrobatchShape) -> float:
    """Keys that a rank's two chunks of each sequence attend to, one row a key and chunk."""
    return sum(length * (2 * batch.context + 1) / (2 * batch.context) for length in batch.lengths)


def _masks(batch: MicrobatchShape) -> float:
    """Elements of the masks that SDPA wants where a chunk attends to earlier ones too; the most of any rank."""
    squares = sum((length / (2 * batch.context)) ** 2 for length in batch.lengths)
    return squares * (2 * batch.context + 1 if batch.context > 1 else 0)


def _feed_forward(
    config: ModelConfig, width: LayerWidths, tokens: int, split: float, spec: Spec, dtype_bytes: int
) -> float:
    """The gated MLP, or the experts if tokens go to them evenly.

    Both keep gate and up in one tensor and the product; unfused SwiGLU also its two factors, and unfused
    weighting of experts one copy more.
    """
    unfused = spec == "local"
    if config.experts is None:
        return tokens * (5 if unfused else 3) * width.inner * dtype_bytes
    experts = config.experts
    routed = split * experts.per_token
    router = split * experts.number * (FLOAT32 + 1) + routed * (8 + 8 + 2 * FLOAT32)
    inner = (6 if unfused else 3) * experts.intermediate_size
    return router + routed * ((config.hidden_size + inner) * dtype_bytes + FLOAT32)
