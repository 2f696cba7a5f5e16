"""Megatron-core's layer: Transformer Engine's for bfloat16 where it is installed, else local modules."""

from typing import Any

import torch
from torch import Tensor, nn

from megatron_empg.actor import expert_repairs, platform
from megatron_empg.actor.attention import PackedAttention
from megatron_empg.weights.mapping.model_config import ModelConfig


def uses_transformer_engine(dtype: torch.dtype) -> bool:
    """Whether a model of this dtype has Transformer Engine's layers: where they run, and in bfloat16 alone.

    Its matrix products of float32 are TF32's, which keep ten bits of the mantissa: engines and checks that compute
    in float32 would disagree with the actor.
    """
    return dtype == torch.bfloat16 and platform.transformer_engine_available()


def layer_spec(config: ModelConfig, dtype: torch.dtype) -> Any:
    """The model's transformer layer."""
    experts = config.experts.number if config.experts else None
    if uses_transformer_engine(dtype):
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

        return get_gpt_layer_with_transformer_engine_spec(
            num_experts=experts, moe_grouped_gemm=bool(experts), qk_layernorm=config.qk_norm
        )
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    spec = get_gpt_layer_local_spec(num_experts=experts, qk_layernorm=config.qk_norm, normalization="RMSNorm")
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RMSNorm
    attention = spec.submodules.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    if experts:  # named in checkpoints as Transformer Engine's layer does, where nothing fuses this norm
        del spec.submodules.sharded_state_dict_keys_map["pre_mlp_layernorm."]
        expert_repairs.apply()
    return spec


def block_spec(config: ModelConfig, dtype: torch.dtype) -> Any:
    """The whole block: the same layer throughout and the final norm."""
    if uses_transformer_engine(dtype):
        return layer_spec(config, dtype)
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

    layer = layer_spec(config, dtype)
    return lambda layers: TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=RMSNorm)


class RMSNorm(nn.Module):
    """Root-mean-square norm whose weight says that its gradient is partial under sequence parallelism.

    Megatron's wrapper of torch's norm refuses sequence parallelism; with the mark on the weight,
    `finalize_model_grads` sums the ranks' gradients.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
