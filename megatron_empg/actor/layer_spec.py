"""Megatron-core's layer: Transformer Engine's for bfloat16 where it is installed, else local modules."""

from typing import Any

import torch

from megatron_empg.actor.attention import PackedAttention
from megatron_empg.upstream import megatron_layers, transformer_engine
from megatron_empg.upstream.megatron_layers import RMSNorm
from megatron_empg.weights.mapping.model_config import ModelConfig


def uses_transformer_engine(dtype: torch.dtype) -> bool:
    """Whether a model of this dtype has Transformer Engine's layers: where they run, and in bfloat16 alone.

    Its matrix products of float32 are TF32's, which keep ten bits of the mantissa: engines and checks that compute
    in float32 would disagree with the actor.
    """
    return dtype == torch.bfloat16 and transformer_engine.available()


def layer_spec(config: ModelConfig, dtype: torch.dtype) -> Any:
    """The model's transformer layer."""
    experts = None
    if config.experts:
        experts = config.experts.number
    if uses_transformer_engine(dtype):
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

        return get_gpt_layer_with_transformer_engine_spec(
            num_experts=experts, moe_grouped_gemm=bool(experts), qk_layernorm=config.qk_norm
        )
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    spec = get_gpt_layer_local_spec(num_experts=experts, qk_layernorm=config.qk_norm, normalization="RMSNorm")
    megatron_layers.take_own_norms(spec, qk_norm=config.qk_norm)
    megatron_layers.take_own_attention(spec, PackedAttention)
    if experts:
        megatron_layers.name_norm_before_experts(spec)
        megatron_layers.name_missing_gemm()
        megatron_layers.give_sizes_as_numbers()
    return spec


def block_spec(config: ModelConfig, dtype: torch.dtype) -> Any:
    """The whole block: the same layer throughout and the final norm."""
    if uses_transformer_engine(dtype):
        return layer_spec(config, dtype)
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

    layer = layer_spec(config, dtype)
    return lambda layers: TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=RMSNorm)
