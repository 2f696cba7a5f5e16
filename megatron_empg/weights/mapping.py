"""One mapping between Hugging Face's and Megatron-core's tensors, read by import, export and weight sync.

A row pairs one Megatron parameter with the Hugging Face tensors it is made of and says how tensor parallelism
shards it. Full tensors are the meeting point: ``merge`` makes Megatron's full tensor, ``split`` takes it apart,
``shard`` and ``unshard`` go between the full tensor and the ranks' pieces.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megatron_empg.weights.model_config import ModelConfig

Kind = Literal["replicated", "vocabulary", "column", "row", "qkv", "gate_up"]


@dataclass(frozen=True)
class Row:
    """One Megatron parameter (name with the layer's global number) and its Hugging Face tensors."""

    megatron: str
    hf: tuple[str, ...]
    kind: Kind
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the Hugging Face tensors."""
    layer: int | None = None

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Shape of the merged tensor, before vocabulary padding."""
        return (sum(shape[0] for shape in self.shapes), *self.shapes[0][1:])


def rows(config: ModelConfig) -> list[Row]:
    """Every parameter of the model, in the order in which weights travel."""
    hidden = config.hidden_size
    table = [_row("embedding.word_embeddings.weight", "model.embed_tokens.weight", "vocabulary",
                  (config.vocab_size, hidden))]  # fmt: skip
    for layer in range(config.num_layers):
        table += _layer_rows(config, layer)
    table.append(_row("decoder.final_layernorm.weight", "model.norm.weight", "replicated", (hidden,)))
    if not config.tie_word_embeddings:
        table.append(_row("output_layer.weight", "lm_head.weight", "vocabulary", (config.vocab_size, hidden)))
    return table


def _row(megatron: str, hf: str, kind: Kind, shape: tuple[int, ...], layer: int | None = None) -> Row:
    return Row(megatron, (hf,), kind, (shape,), layer)


def _layer_rows(config: ModelConfig, layer: int) -> Iterator[Row]:
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    ours, theirs = f"decoder.layers.{layer}", f"model.layers.{layer}"
    yield _row(f"{ours}.input_layernorm.weight", f"{theirs}.input_layernorm.weight", "replicated",
               (hidden,), layer)  # fmt: skip
    projections = [f"{theirs}.self_attn.{name}_proj" for name in "qkv"]
    sizes = (q, kv, kv)
    yield Row(f"{ours}.self_attention.linear_qkv.weight", tuple(f"{p}.weight" for p in projections), "qkv",
              tuple((size, hidden) for size in sizes), layer)  # fmt: skip
    if config.qkv_bias:
        yield Row(f"{ours}.self_attention.linear_qkv.bias", tuple(f"{p}.bias" for p in projections), "qkv",
                  tuple((size,) for size in sizes), layer)  # fmt: skip
    yield _row(f"{ours}.self_attention.linear_proj.weight", f"{theirs}.self_attn.o_proj.weight", "row",
               (hidden, q), layer)  # fmt: skip
    yield _row(f"{ours}.pre_mlp_layernorm.weight", f"{theirs}.post_attention_layernorm.weight", "replicated",
               (hidden,), layer)  # fmt: skip
    yield Row(f"{ours}.mlp.linear_fc1.weight",
              (f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight"), "gate_up",
              ((inner, hidden), (inner, hidden)), layer)  # fmt: skip
    yield _row(f"{ours}.mlp.linear_fc2.weight", f"{theirs}.mlp.down_proj.weight", "row",
               (hidden, inner), layer)  # fmt: skip


def merge(row: Row, tensors: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """Hugging Face's tensors as Megatron's full tensor (queries, keys, values interleaved by group)."""
    if row.kind != "qkv":
        return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]
    rest = tensors[0].shape[1:]
    grouped = [t.reshape(config.num_kv_heads, -1, *rest) for t in tensors]
    return torch.cat(grouped, dim=1).reshape(-1, *rest)


def split(row: Row, full: Tensor, config: ModelConfig) -> list[Tensor]:
    """Megatron's full tensor as Hugging Face's tensors; the inverse of `merge`."""
    if row.kind == "vocabulary":
        return [full[: config.vocab_size]]
    if row.kind == "gate_up":
        return list(full.chunk(2))
    if row.kind != "qkv":
        return [full]
    rest = full.shape[1:]
    per_group = config.num_heads // config.num_kv_heads
    sizes = [per_group * config.head_dim, config.head_dim, config.head_dim]
    grouped = full.reshape(config.num_kv_heads, sum(sizes), *rest)
    return [part.reshape(-1, *rest) for part in grouped.split(sizes, dim=1)]


def shard(row: Row, full: Tensor, config: ModelConfig, parallel_size: int, rank: int) -> Tensor:
    """The piece of a tensor-parallel rank; the vocabulary is padded with zeros."""
    if row.kind == "replicated":
        return full
    if row.kind == "row":
        return full.chunk(parallel_size, dim=1)[rank]
    if row.kind == "gate_up":
        return torch.cat([half.chunk(parallel_size)[rank] for half in full.chunk(2)])
    if row.kind == "vocabulary":
        padded = config.padded_vocab_size(parallel_size)
        full = torch.cat([full, full.new_zeros(padded - len(full), *full.shape[1:])])
    return full.chunk(parallel_size)[rank]


def unshard(row: Row, pieces: Sequence[Tensor]) -> Tensor:
    """The full (vocabulary-padded) tensor from every rank's piece; the inverse of `shard`."""
    if row.kind == "replicated" or len(pieces) == 1:
        return pieces[0]
    if row.kind == "row":
        return torch.cat(list(pieces), dim=1)
    if row.kind == "gate_up":
        halves = [piece.chunk(2) for piece in pieces]
        return torch.cat([h[0] for h in halves] + [h[1] for h in halves])
    return torch.cat(list(pieces))
