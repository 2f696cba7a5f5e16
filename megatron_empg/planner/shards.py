"""How many parameters a rank holds, counted from the table that import, export and weight sync read."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from megatron_empg.actor.config import ActorConfig
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameter_mapping import ParameterMapping
from megatron_empg.weights.mapping.parameters import EMBEDDING, FINAL_NORM, OUTPUT_LAYER, parameter_table


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of elements; every tensor-parallel rank of a pipeline stage holds as many."""

    dense: int = 0
    """All but the experts'; data- and context-parallel ranks hold copies."""
    experts: int = 0
    largest: int = 0
    """Of the largest single parameter."""

    def __add__(self, other: "ParameterCounts") -> "ParameterCounts":
        largest = max(self.largest, other.largest)
        return ParameterCounts(self.dense + other.dense, self.experts + other.experts, largest)

    @property
    def total(self) -> int:
        return self.dense + self.experts


def stage_parameters(config: ModelConfig, actor: ActorConfig, stage: int) -> ParameterCounts:
    """Parameters of one rank of a pipeline stage. A last stage of its own holds tied embeddings a second time."""
    stages = actor.pipeline_parallel
    layer, embedding, norm, head = _parts(config, actor.tensor_parallel, actor.expert_parallel)
    layers = config.num_layers // stages
    held = ParameterCounts(layers * layer.dense, layers * layer.experts, layer.largest)
    if stage == 0:
        held += embedding
    if stage == stages - 1:
        held += norm
        if head is not None:
            held += head
        elif stages > 1:
            held += embedding
    return held


@lru_cache
def model_parameters(config: ModelConfig) -> int:
    """Parameters of the whole model, with tied embeddings counted once and the vocabulary not padded."""
    inner, outer = _sample(config)
    layer = sum(math.prod(parameter.full_shape) for parameter in inner)
    rest = sum(math.prod(parameter.full_shape) for parameter in outer)
    return config.num_layers * layer + rest


def _sample(config: ModelConfig) -> tuple[list[ParameterMapping], list[ParameterMapping]]:
    """(the first layer's parameters, those outside of layers); all layers are alike."""
    table = parameter_table(replace(config, num_layers=1))
    inner = [parameter for parameter in table if parameter.layer is not None]
    outer = [parameter for parameter in table if parameter.layer is None]
    return inner, outer


@lru_cache
def _parts(
    config: ModelConfig, tensor_parallel: int, expert_parallel: int
) -> tuple[ParameterCounts, ParameterCounts, ParameterCounts, ParameterCounts | None]:
    """A rank's part of (a layer, the embedding, the final norm, the head unless it is tied)."""
    inner, outer = _sample(config)
    layer = ParameterCounts()
    for parameter in inner:
        size = parameter.shard_numel(tensor_parallel)
        if parameter.expert is None:
            layer += ParameterCounts(dense=size, largest=size)
        elif parameter.expert < _experts_of_a_rank(config, expert_parallel):
            layer += ParameterCounts(experts=size, largest=size)
    sizes = {parameter.megatron: parameter.shard_numel(tensor_parallel) for parameter in outer}
    parts = {name: ParameterCounts(dense=size, largest=size) for name, size in sizes.items()}
    return (
        layer,
        parts[EMBEDDING],
        parts[FINAL_NORM],
        parts.get(OUTPUT_LAYER),
    )


def _experts_of_a_rank(config: ModelConfig, expert_parallel: int) -> int:
    if not config.experts:
        return 0
    return config.experts.number // expert_parallel
