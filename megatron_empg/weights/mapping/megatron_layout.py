"""Where a parameter lies in a Megatron checkpoint: tensors stacked over layers (and experts), in ranks' chunks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameters import Row

WEIGHTS = "megatron"
"""The folder, inside a checkpoint's, that Megatron's dist_checkpointing writes and reads."""
METADATA = ".metadata"
_NORMS = {  # named in every checkpoint as Transformer Engine fuses them
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}


@dataclass(frozen=True)
class Place:
    """One parameter inside a tensor of the checkpoint."""

    key: str
    lead: tuple[int, ...]
    """The layer and expert: indices into the stacked tensor's leading dimensions."""
    lead_sizes: tuple[int, ...]


@dataclass(frozen=True)
class Chunk:
    """A rank's part of a parameter: from ``start`` on in the full one, rows ``rows`` of the rank's piece."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    rows: tuple[int, int]


def is_megatron(folder: Path) -> bool:
    """Whether the folder is a Megatron checkpoint, of a training step or of weights alone."""
    return (Path(folder) / WEIGHTS / METADATA).exists()


def place(row: Row, config: ModelConfig) -> Place:
    """The tensor that holds the parameter, and where."""
    if row.layer is None:
        return Place(row.megatron, (), ())
    rest = row.megatron.removeprefix(f"decoder.layers.{row.layer}.")
    if row.expert is not None:
        assert config.experts is not None
        rest = rest.replace(f"mlp.experts.{row.expert}.", "mlp.experts.experts.")
        return Place(f"decoder.layers.{rest}", (row.layer, row.expert), (config.num_layers, config.experts.number))
    if config.experts is None or rest != "pre_mlp_layernorm.weight":  # that one has no linear layer to fuse with
        rest = _NORMS.get(rest, rest)
    return Place(f"decoder.layers.{rest}", (row.layer,), (config.num_layers,))


def full_shape(row: Row, config: ModelConfig, parallel_size: int) -> tuple[int, ...]:
    """The merged parameter's shape, vocabulary padded."""
    if row.kind != "vocabulary":
        return row.full_shape
    return (config.padded_vocab_size(parallel_size), *row.full_shape[1:])


def chunks(row: Row, config: ModelConfig, parallel_size: int, rank: int) -> Iterator[Chunk]:
    """What a tensor-parallel rank holds of the full parameter. Gate and up are each a chunk."""
    shape = full_shape(row, config, parallel_size)
    if row.kind == "replicated" or row.expert is not None:
        yield Chunk((0,) * len(shape), shape, (0, shape[0]))
    elif row.kind == "row":
        width = shape[1] // parallel_size
        yield Chunk((0, rank * width), (shape[0], width), (0, shape[0]))
    else:
        parts = 2 if row.kind == "gate_up" else 1
        length = shape[0] // (parts * parallel_size)
        for part in range(parts):
            start = (part * parallel_size + rank) * length
            yield Chunk(
                (start, *(0 for _ in shape[1:])), (length, *shape[1:]), (part * length, (part + 1) * length)
            )
