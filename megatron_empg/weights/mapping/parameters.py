"""The table of a model's parameters: import, export, weight sync, conversion and planner all read it."""

from collections.abc import Iterator

from megatron_empg.weights.mapping.families import FAMILIES, LayerParameter
from megatron_empg.weights.mapping.mappings import PaddedVocabulary, Replicated
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.model_sizes import ModelSizes
from megatron_empg.weights.mapping.parameter_mapping import ParameterMapping

EMBEDDING = "embedding.word_embeddings.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
OUTPUT_LAYER = "output_layer.weight"
"""Megatron's names of the parameters outside the layers. Tied embeddings have no output layer."""


def parameter_table(config: ModelConfig) -> list[ParameterMapping]:
    """Every parameter of the model, in the order in which weights travel."""
    sizes = config.sizes
    vocabulary = (sizes.shape("vocabulary hidden"),)
    hidden = (sizes.shape("hidden"),)
    table: list[ParameterMapping] = []
    table.append(PaddedVocabulary(EMBEDDING, ("model.embed_tokens.weight",), vocabulary, EMBEDDING, sizes))
    for layer in range(config.num_layers):
        table += _layer_parameters(config, sizes, layer)
    table.append(Replicated(FINAL_NORM, ("model.norm.weight",), hidden, FINAL_NORM, sizes))
    if not config.tie_word_embeddings:
        table.append(PaddedVocabulary(OUTPUT_LAYER, ("lm_head.weight",), vocabulary, OUTPUT_LAYER, sizes))
    return table


def _layer_parameters(config: ModelConfig, sizes: ModelSizes, layer: int) -> Iterator[ParameterMapping]:
    """Those outside the experts, then expert by expert."""
    entries = FAMILIES[config.family].layer
    for entry in entries:
        if not entry.of_an_expert:
            yield _mapping(entry, sizes, layer)
    for expert in range(sizes.experts):
        for entry in entries:
            if entry.of_an_expert:
                yield _mapping(entry, sizes, layer, expert)


def _mapping(entry: LayerParameter, sizes: ModelSizes, layer: int, expert: int | None = None) -> ParameterMapping:
    """The entry of a family's table in a layer, numbers filled in."""
    hugging_face = [f"model.layers.{layer}.{name.format(expert)}" for name in entry.hf]
    shapes = [sizes.shape(dimensions) for dimensions in entry.shapes]
    return entry.mapping(
        megatron=f"decoder.layers.{layer}.{entry.megatron.format(expert)}",
        hf=tuple(hugging_face),
        shapes=tuple(shapes),
        key=entry.key,
        sizes=sizes,
        layer=layer,
        expert=expert,
    )
