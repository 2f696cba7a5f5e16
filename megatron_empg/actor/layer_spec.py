"""Megatron-core's layer: Transformer Engine's where it is installed, else local modules that need no CUDA."""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from megatron_empg.actor.attention import PackedAttention


def transformer_engine_available() -> bool:
    """Whether Transformer Engine's layers can be used: installed, on a CUDA device."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def layer_spec() -> Any:
    """The transformer layer of a dense model with RMSNorm."""
    if transformer_engine_available():
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

        return get_gpt_layer_with_transformer_engine_spec()
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RMSNorm
    spec.submodules.self_attention.submodules.core_attention = PackedAttention
    return spec


def block_spec() -> Any:
    """The whole block: the same layer throughout and the final norm."""
    if transformer_engine_available():
        return layer_spec()
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

    return lambda layers: TransformerBlockSubmodules(layer_specs=[layer_spec()] * layers, layer_norm=RMSNorm)


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
