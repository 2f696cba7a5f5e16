"""How many parameters a rank holds, counted from the table that import, export and weight sync read."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from megatron_empg.recipe import ActorSection
from megatron_empg.weights.mapping.megatron_layout import full_shape
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameters import Row, rows


@dataclass(frozen=True)
class Parameters:
    """Numbers of elements; every tensor-parallel rank of a pipeline stage holds as many."""

    dense: int = 0
    """All but the experts'; data- and context-parallel ranks hold copies."""
    experts: int = 0
    largest: int = 0
    """Of the largest single parameter."""

    def __add__(self, other: "Parameters") -> "Parameters":
        largest = max(self.largest, other.largest)
        return Parameters(self.dense + other.dense, self.experts + other.experts, largest)

    @property
    def total(self) -> int:
        return self.dense + self.experts


def stage_parameters(config: ModelConfig, actor: ActorSection, stage: int) -> Parameters:
    """Of one rank of a pipeline stage. Tied embeddings stand a second time on a last stage of its own."""
    stages = actor.pipeline_parallel
    layer, embedding, norm, head = _parts(config, actor.tensor_parallel, actor.expert_parallel)
    layers = config.num_layers // stages
    held = Parameters(layers * layer.dense, layers * layer.experts, layer.largest)
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
    """Of the whole model, tied embeddings counted once, vocabulary not padded."""
    layer, outer = (sum(math.prod(row.full_shape) for row in part) for part in _sample_rows(config))
    return config.num_layers * layer + outer


def _sample_rows(config: ModelConfig) -> tuple[list[Row], list[Row]]:
    """(the first layer's rows, those outside of layers); all layers are alike."""
    table = rows(replace(config, num_layers=1))
    return [row for row in table if row.layer is not None], [row for row in table if row.layer is None]


@lru_cache
def _parts(
    config: ModelConfig, tensor_parallel: int, expert_parallel: int
) -> tuple[Parameters, Parameters, Parameters, Parameters | None]:
    """A rank's part of (a layer, the embedding, the final norm, the head unless it is tied)."""
    inner, outer = _sample_rows(config)
    layer = Parameters()
    for row in inner:
        size = _numel(row, config, tensor_parallel)
        if row.expert is None:
            layer += Parameters(dense=size, largest=size)
        elif row.expert < _experts_of_a_rank(config, expert_parallel):
            layer += Parameters(experts=size, largest=size)
    sizes = {row.megatron: _numel(row, config, tensor_parallel) for row in outer}
    parts = {name: Parameters(dense=size, largest=size) for name, size in sizes.items()}
    return (
        layer,
        parts["embedding.word_embeddings.weight"],
        parts["decoder.final_layernorm.weight"],
        parts.get("output_layer.weight"),
    )


def _experts_of_a_rank(config: ModelConfig, expert_parallel: int) -> int:
    return config.experts.number // expert_parallel if config.experts else 0


def _numel(row: Row, config: ModelConfig, tensor_parallel: int) -> int:
    full = math.prod(full_shape(row, config, tensor_parallel))
    return full if row.kind == "replicated" or row.expert is not None else full // tensor_parallel
