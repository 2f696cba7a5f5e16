"""The actor's weights to and from Hugging Face's names: filling a model, and walking over full tensors."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_empg.actor.config import ActorConfig
from megatron_empg.actor.parallel import (
    data_and_context_group,
    expert_group,
    first_of_stage,
    pipeline_group,
    stage_rank,
    tensor_group,
    tensor_rank,
)
from megatron_empg.actor.platform import device
from megatron_empg.weights.checkpoints.hugging_face import write_folder
from megatron_empg.weights.checkpoints.open_weights import open_weights
from megatron_empg.weights.mapping.families import unfused
from megatron_empg.weights.mapping.initialise import random_tensors
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameter_mapping import ParameterMapping
from megatron_empg.weights.mapping.parameters import EMBEDDING, OUTPUT_LAYER, parameter_table
from megatron_empg.weights.sync.source import AssignedTensor

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
    rest = _EXPERT.sub(lambda match: _expert_name(match, layer.mlp), unfused(rest))
    return f"{prefix}{layer.layer_number - 1}.{rest}"


def _expert_name(match: re.Match[str], mlp: Any) -> str:
    """A rank numbers its experts from 0, as modules of their own or as weights of one grouped module."""
    number = mlp.local_expert_indices[int(match["module"] or match["weight"])]
    return f"mlp.experts.{number}.{match['linear']}.weight"


def load(model: list[Any], config: ModelConfig, settings: ActorConfig, folder: Path) -> None:
    """Fill every local parameter from a Hugging Face folder or a Megatron checkpoint; reads what this rank needs.

    Raises CheckpointError naming a missing, surplus or misshapen tensor, and ValueError for a parameter of the
    model that the mapping does not know.
    """
    with open_weights(folder, config) as reader:
        ranks, rank = settings.tensor_parallel, tensor_rank()
        fill(model, config, lambda parameter: reader.read_shard(parameter, ranks, rank))


@torch.no_grad()
def fill(model: list[Any], config: ModelConfig, shard_of: Callable[[ParameterMapping], Tensor]) -> None:
    """Give every local parameter this tensor-parallel rank's shard of it."""
    named = local_parameters(model)
    for parameter in parameter_table(config):
        for name in _places(parameter, config):
            if name in named:
                named.pop(name).copy_(shard_of(parameter))
    if named:
        raise ValueError(f"no Hugging Face tensor is mapped to {sorted(named)}")


def initialise(model: list[Any], config: ModelConfig, settings: ActorConfig, seed: int) -> None:
    """Fill every local parameter at random, the same in every layout."""

    def shard_of(parameter: ParameterMapping) -> Tensor:
        full = parameter.merge(random_tensors(parameter, config, seed))
        return parameter.shard(full, settings.tensor_parallel, tensor_rank())

    fill(model, config, shard_of)


def _places(parameter: ParameterMapping, config: ModelConfig) -> list[str]:
    """Tied embeddings stand a second time on the last pipeline stage, as its output layer."""
    if config.tie_word_embeddings and parameter.megatron == EMBEDDING:
        return [EMBEDDING, OUTPUT_LAYER]
    return [parameter.megatron]


class ActorWeights:
    """The policy's full tensors under Hugging Face names, gathered one Megatron parameter at a time.

    Iterating is collective: every rank of the first data-parallel replica must do it, and holds each tensor
    only while it is at the front. Memory above the model's own: one parameter. `own_part` gathers less: what each
    rank sends to engines itself.
    """

    def __init__(
        self,
        model: list[Any],
        config: ModelConfig,
        settings: ActorConfig,
        dtype: torch.dtype,
        *,
        takes_part: bool = True,
    ) -> None:
        """`takes_part`: whether this rank belongs to those that must iterate."""
        self.config, self.settings, self.dtype = config, settings, dtype
        self._takes_part = takes_part
        self.table = parameter_table(config)
        self._local: Callable[[], dict[str, torch.nn.Parameter]] = lambda: local_parameters(model)

    def metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(name, dtype, shape) of every tensor, in the order of iteration."""
        described = []
        for parameter in self.table:
            for name, shape in zip(parameter.hf, parameter.shapes, strict=True):
                described.append((name, self.dtype, shape))
        return described

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        named = self._local()
        for parameter in self.table:
            full = self._gather(parameter, named.get(parameter.megatron))
            yield from zip(parameter.hf, parameter.split(full), strict=True)

    @property
    def sender(self) -> int | None:
        """Which of those that send to engines this rank is; None for one that sends nothing.

        They are the first rank of every pipeline stage and, where experts are shared out, the ranks that share
        them with it, each of which sends its own experts.
        """
        stage = pipeline_group().rank()
        if self.settings.expert_parallel == 1:
            return stage if dist.get_rank() == first_of_stage() else None
        sharers = dist.get_process_group_ranks(expert_group())
        if sharers[0] != first_of_stage():
            return None
        return stage * self.settings.expert_parallel + expert_group().rank()

    def stages(self) -> list[list[AssignedTensor]]:
        """Every tensor with its sender, by pipeline stage and in the order of `own_part`."""
        found: list[list[AssignedTensor]] = [[] for _ in range(self.settings.pipeline_parallel)]
        for parameter in self.table:
            sender = self._sender_of(parameter)
            for name, shape in zip(parameter.hf, parameter.shapes, strict=True):
                found[self._stage_of(parameter)].append(AssignedTensor(sender, name, self.dtype, shape))
        return found

    @torch.no_grad()
    def own_part(self) -> Iterator[tuple[str, Tensor]]:
        """The full tensors that this rank sends; none of another stage or another rank's experts is ever here.

        Collective over the tensor-parallel ranks of each stage of the first replica, which all take part; for
        every other rank it communicates nothing.
        """
        sender, gathers = self.sender, data_and_context_group().rank() == 0
        if sender is None and not gathers:
            return
        named = self._local()
        for parameter in self.table:
            sends = self._sender_of(parameter) == sender
            divides = gathers and parameter.expert is None
            if self._stage_of(parameter) != pipeline_group().rank() or not (sends or divides):
                continue
            full = self._unshard(parameter, named[parameter.megatron].data.to(self.dtype).contiguous())
            if sends:
                yield from zip(parameter.hf, parameter.split(full.contiguous()), strict=True)

    def _stage_of(self, parameter: ParameterMapping) -> int:
        return parameter.pipeline_stage(self.settings.pipeline_parallel, self.settings.virtual_pipeline)

    def _sender_of(self, parameter: ParameterMapping) -> int:
        ranks = self.settings.expert_parallel
        owner = 0 if parameter.expert is None else parameter.expert_owner(ranks)
        return self._stage_of(parameter) * ranks + owner

    def take_part(self) -> None:
        """Make every tensor with rank 0, which iterates, and keep none; nothing on a rank of another replica."""
        if self._takes_part:
            for _ in self:
                pass

    def _gather(self, parameter: ParameterMapping, local: Tensor | None) -> Tensor:
        settings = self.settings
        full = None
        if local is not None:
            full = self._unshard(parameter, local.data.to(self.dtype).contiguous())
        stage = self._stage_of(parameter)
        shares_experts = parameter.expert is not None and settings.expert_parallel > 1
        if shares_experts and stage == pipeline_group().rank():
            full = self._share_expert(parameter, full)
        if settings.pipeline_parallel == 1:
            assert full is not None, parameter.megatron
            return full.contiguous()
        if full is None:
            full = self._empty(parameter)
        full = full.contiguous()
        dist.broadcast(full, stage_rank(stage), group=pipeline_group())
        return full

    def _unshard(self, parameter: ParameterMapping, shard: Tensor) -> Tensor:
        """The full parameter from the shards of the tensor-parallel ranks; collective over them."""
        ranks = self.settings.tensor_parallel
        if not parameter.divided or ranks == 1:
            return shard
        shards = [torch.empty_like(shard) for _ in range(ranks)]
        dist.all_gather(shards, shard, group=tensor_group())
        return parameter.unshard(shards)

    def _share_expert(self, parameter: ParameterMapping, full: Tensor | None) -> Tensor:
        """The expert's parameter, from the rank of this stage that has it."""
        owner = parameter.expert_owner(self.settings.expert_parallel)
        if full is None:
            full = self._empty(parameter)
        dist.broadcast(full, dist.get_process_group_ranks(expert_group())[owner], group=expert_group())
        return full

    def _empty(self, parameter: ParameterMapping) -> Tensor:
        """Room for a full parameter that another rank has."""
        shape = parameter.padded_shape(self.settings.tensor_parallel)
        return torch.empty(shape, dtype=self.dtype, device=device())


def export_hugging_face(actor: Any, destination: Path, *, like: Path) -> None:
    """Write the policy as a Hugging Face folder with ``like``'s configuration; entered by all ranks."""
    actor.settle()
    if actor.sends_weights:
        weights = actor.weights()
        if dist.get_rank() == 0:
            write_folder(destination, weights, like)
        else:
            weights.take_part()
    dist.barrier()
