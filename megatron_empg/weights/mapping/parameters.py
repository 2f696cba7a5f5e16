"""The mapping between Hugging Face's and Megatron-core's tensors, read by import, export and weight sync.

A row pairs one Megatron parameter with the Hugging Face tensors it is made of and says how tensor parallelism
shards it. Full tensors are the meeting point: ``merge`` makes Megatron's full tensor, ``split`` takes it apart,
``shard`` and ``unshard`` go between the full tensor and the ranks' pieces. An expert lies whole on its rank.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_empg.weights.mapping.families import FAMILIES, Entry, Kind
from megatron_empg.weights.mapping.model_config import ModelConfig


@dataclass(frozen=True)
class Row:
    """One Megatron parameter (name with the layer's and expert's global numbers) and its Hugging Face tensors."""

    megatron: str
    hf: tuple[str, ...]
    kind: Kind
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the Hugging Face tensors."""
    layer: int | None = None
    expert: int | None = None

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Shape of the merged tensor, before vocabulary padding."""
        return (sum(shape[0] for shape in self.shapes), *self.shapes[0][1:])


def rows(config: ModelConfig) -> list[Row]:
    """Every parameter of the model, in the order in which weights travel."""
    vocabulary, hidden = (config.vocab_size, config.hidden_size), (config.hidden_size,)
    embedding = Row(
        "embedding.word_embeddings.weight", ("model.embed_tokens.weight",), "vocabulary", (vocabulary,)
    )
    norm = Row("decoder.final_layernorm.weight", ("model.norm.weight",), "replicated", (hidden,))
    head = Row("output_layer.weight", ("lm_head.weight",), "vocabulary", (vocabulary,))
    table = [embedding]
    for layer in range(config.num_layers):
        table += _layer_rows(config, layer)
    return [*table, norm] if config.tie_word_embeddings else [*table, norm, head]


def sizes(config: ModelConfig) -> dict[str, int]:
    """The dimensions that the families' tables name."""
    return {
        "hidden": config.hidden_size,
        "head": config.head_dim,
        "q": config.num_heads * config.head_dim,
        "kv": config.num_kv_heads * config.head_dim,
        "inner": config.intermediate_size,
        "experts": config.experts.number if config.experts else 0,
        "expert_inner": config.experts.intermediate_size if config.experts else 0,
    }


def _layer_rows(config: ModelConfig, layer: int) -> Iterator[Row]:
    entries = FAMILIES[config.family].layer
    common = [entry for entry in entries if not entry.of_an_expert]
    yield from (_row(config, entry, layer) for entry in common)
    for expert in range(config.experts.number if config.experts else 0):
        yield from (_row(config, entry, layer, expert) for entry in entries if entry.of_an_expert)


def _row(config: ModelConfig, entry: Entry, layer: int, expert: int | None = None) -> Row:
    dimensions = sizes(config)
    return Row(
        f"decoder.layers.{layer}.{entry.megatron.format(expert)}",
        tuple(f"model.layers.{layer}.{name.format(expert)}" for name in entry.hf),
        entry.kind,
        tuple(tuple(dimensions[size] for size in shape.split()) for shape in entry.shapes),
        layer,
        expert,
    )


def merge(row: Row, tensors: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """Hugging Face's tensors as Megatron's full tensor (queries, keys, values interleaved by group)."""
    if row.kind != "qkv":
        return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]
    rest, groups = tensors[0].shape[1:], len(tensors[1]) // config.head_dim
    grouped = [t.reshape(groups, -1, *rest) for t in tensors]
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
    if _whole(row):
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
    if _whole(row) or len(pieces) == 1:
        return pieces[0]
    if row.kind == "row":
        return torch.cat(list(pieces), dim=1)
    if row.kind == "gate_up":
        halves = [piece.chunk(2) for piece in pieces]
        return torch.cat([h[0] for h in halves] + [h[1] for h in halves])
    return torch.cat(list(pieces))


def _whole(row: Row) -> bool:
    """Whether tensor parallelism leaves the parameter whole."""
    return row.kind == "replicated" or row.expert is not None


@dataclass(frozen=True)
class Part:
    """A stretch of one dimension."""

    dim: int
    start: int
    stop: int


def piece(
    row: Row,
    config: ModelConfig,
    parallel_size: int,
    rank: int,
    read: Callable[[str, Part | None], Tensor],
) -> Tensor:
    """`shard` of `merge`, having read no more of the Hugging Face tensors than the rank needs.

    ``read(name, part)`` gives a part of a tensor, or all of it for None.
    """
    if _whole(row) or (row.kind == "qkv" and config.num_kv_heads % parallel_size):
        full = merge(row, [read(name, None) for name in row.hf], config)
        return shard(row, full, config, parallel_size, rank)
    dim = 1 if row.kind == "row" else 0
    parts = []
    for name, shape in zip(row.hf, row.shapes, strict=True):
        size = config.padded_vocab_size(parallel_size) if row.kind == "vocabulary" else shape[dim]
        length = size // parallel_size
        start, stop = (min(edge * length, shape[dim]) for edge in (rank, rank + 1))
        part = read(name, Part(dim, start, stop))
        if row.kind == "vocabulary":
            part = torch.cat([part, part.new_zeros(length - len(part), *part.shape[1:])])
        parts.append(part)
    return merge(row, parts, config)
