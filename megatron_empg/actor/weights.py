"""The actor's weights to and from Hugging Face's names: filling a model, and walking over full tensors."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_empg.actor.layout import Layout
from megatron_empg.actor.parallel import (
    expert_group,
    owner_stage,
    pipeline_group,
    stage_rank,
    tensor_group,
    tensor_rank,
)
from megatron_empg.actor.platform import device
from megatron_empg.weights.checkpoints.hugging_face import write_folder
from megatron_empg.weights.checkpoints.reader import open_weights
from megatron_empg.weights.mapping.initialise import random_tensors
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameters import Row, merge, rows, shard, split, unshard

_FUSED_NORMS = {  # Transformer Engine fuses each norm into the linear layer behind it.
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


_EXPERT = re.compile(
    r"mlp\.experts\.(local_experts\.(?P<module>\d+)\.)?(?P<linear>linear_fc[12])\.weight(?P<weight>\d*)$"
)


def local_parameters(model: list[Any]) -> dict[str, torch.nn.Parameter]:
    """This rank's parameters by Megatron name, layers numbered over the whole model."""
    named: dict[str, torch.nn.Parameter] = {}
    for chunk in model:
        unwrapped = chunk.module if hasattr(chunk, "module") else chunk
        for name, parameter in unwrapped.named_parameters():
            named[_global_name(name, unwrapped)] = parameter
    return named


def _global_name(name: str, module: Any) -> str:
    """Pipeline stages number their layers from 0; the mapping numbers them over the whole model."""
    prefix = "decoder.layers."
    if not name.startswith(prefix):
        return name
    local, rest = name.removeprefix(prefix).split(".", 1)
    layer = module.decoder.layers[int(local)]
    rest = _EXPERT.sub(lambda match: _expert_name(match, layer.mlp), _FUSED_NORMS.get(rest, rest))
    return f"{prefix}{layer.layer_number - 1}.{rest}"


def _expert_name(match: re.Match[str], mlp: Any) -> str:
    """A rank numbers its experts from 0, as modules of their own or as weights of one grouped module."""
    number = mlp.local_expert_indices[int(match["module"] or match["weight"])]
    return f"mlp.experts.{number}.{match['linear']}.weight"


def load(model: list[Any], config: ModelConfig, layout: Layout, folder: Path) -> None:
    """Fill every local parameter from a Hugging Face folder or a Megatron checkpoint; reads what this rank needs.

    Raises CheckpointError naming a missing, surplus or misshapen tensor, and ValueError for a parameter of the
    model that the mapping does not know.
    """
    with open_weights(folder, config) as reader:
        fill(model, config, lambda row: reader.piece(row, layout.tensor, tensor_rank()))


@torch.no_grad()
def fill(model: list[Any], config: ModelConfig, piece_of: Callable[[Row], Tensor]) -> None:
    """Give every local parameter this tensor-parallel rank's piece of its row."""
    named = local_parameters(model)
    for row in rows(config):
        for name in _places(row, config):
            if name in named:
                named.pop(name).copy_(piece_of(row))
    if named:
        raise ValueError(f"no Hugging Face tensor is mapped to {sorted(named)}")


def initialise(model: list[Any], config: ModelConfig, layout: Layout, seed: int) -> None:
    """Fill every local parameter at random, the same in every layout."""

    def piece_of(row: Row) -> Tensor:
        full = merge(row, random_tensors(row, config, seed), config)
        return shard(row, full, config, layout.tensor, tensor_rank())

    fill(model, config, piece_of)


def _places(row: Row, config: ModelConfig) -> list[str]:
    """Tied embeddings stand a second time on the last pipeline stage, as its output layer."""
    tied = config.tie_word_embeddings and row.megatron == "embedding.word_embeddings.weight"
    return [row.megatron, "output_layer.weight"] if tied else [row.megatron]


class ActorWeights:
    """The policy's full tensors under Hugging Face names, gathered one Megatron parameter at a time.

    Iterating is collective: every rank of the first data-parallel replica must do it, and holds each tensor
    only while it is at the front. Memory above the model's own: one parameter.
    """

    def __init__(self, model: list[Any], config: ModelConfig, layout: Layout, dtype: torch.dtype) -> None:
        self.config, self.layout, self.dtype = config, layout, dtype
        self.table = rows(config)
        self._local: Callable[[], dict[str, torch.nn.Parameter]] = lambda: local_parameters(model)

    def metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(name, dtype, shape) of every tensor, in the order of iteration."""
        return [
            (name, self.dtype, shape) for row in self.table for name, shape in zip(row.hf, row.shapes, strict=True)
        ]

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        named = self._local()
        for row in self.table:
            full = self._gather(row, named.get(row.megatron))
            yield from zip(row.hf, split(row, full, self.config), strict=True)

    def _gather(self, row: Row, local: Tensor | None) -> Tensor:
        layout = self.layout
        full: Tensor | None = None
        if local is not None:
            piece = local.data.to(self.dtype).contiguous()
            if row.kind == "replicated" or row.expert is not None or layout.tensor == 1:
                full = piece
            else:
                pieces = [torch.empty_like(piece) for _ in range(layout.tensor)]
                dist.all_gather(pieces, piece, group=tensor_group())
                full = unshard(row, pieces)
        stage = owner_stage(row, self.config.num_layers, layout.pipeline, layout.virtual_pipeline)
        if row.expert is not None and layout.expert > 1 and stage == pipeline_group().rank():
            full = self._share_expert(row, full)
        if layout.pipeline == 1:
            assert full is not None, row.megatron
            return full.contiguous()
        if full is None:
            full = torch.empty(self._padded_shape(row), dtype=self.dtype, device=device())
        full = full.contiguous()
        dist.broadcast(full, stage_rank(stage), group=pipeline_group())
        return full

    def _share_expert(self, row: Row, full: Tensor | None) -> Tensor:
        """The expert's parameter, from the rank of this stage that has it."""
        assert row.expert is not None
        assert self.config.experts is not None
        owner = row.expert // (self.config.experts.number // self.layout.expert)
        if full is None:
            full = torch.empty(row.full_shape, dtype=self.dtype, device=device())
        dist.broadcast(full, dist.get_process_group_ranks(expert_group())[owner], group=expert_group())
        return full

    def _padded_shape(self, row: Row) -> tuple[int, ...]:
        if row.kind != "vocabulary":
            return row.full_shape
        return (self.config.padded_vocab_size(self.layout.tensor), *row.full_shape[1:])


def export_hugging_face(actor: Any, destination: Path, *, like: Path) -> None:
    """Write the policy as a Hugging Face folder with ``like``'s configuration; entered by all ranks."""
    actor.settle()
    if actor.sends_weights:
        weights = actor.weights()
        if dist.get_rank() == 0:
            write_folder(destination, weights, like)
        else:
            for _ in weights:
                pass
    dist.barrier()
