"""Megatron-core's layer without Transformer Engine: norm, attention, experts, and the names of its norms."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from megatron_empg.upstream.record import patch

_TESTED = ("0.16.1", "0.19.2")


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


@patch(
    "megatron-core",
    symptom="AssertionError: sequence parallel not supported by torch LayerNorm",
    trigger="the local layer with sequence parallelism",
    why="Megatron's wrapper of torch's norm does not mark its weight for the sum of partial gradients",
    versions=_TESTED,
    can_go_when="WrappedTorchNorm works under sequence parallelism",
)
def take_own_norms(spec: Any, *, qk_norm: bool) -> None:
    """Put `RMSNorm` into a local layer's specification; into its attention too with ``qk_norm``."""
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RMSNorm
    if qk_norm:
        attention = spec.submodules.self_attention.submodules
        attention.q_layernorm = attention.k_layernorm = RMSNorm


@patch(
    "megatron-core",
    symptom="AssertionError: Packed sequence is not supported by DotProductAttention",
    trigger="the local layer on packed (thd) sequences, or with context parallelism",
    why="Megatron leaves both to Transformer Engine's attention",
    versions=_TESTED,
    can_go_when="DotProductAttention takes packed sequences and context parallelism",
)
def take_own_attention(spec: Any, attention: type) -> None:
    """Put a core attention into a local layer's specification."""
    spec.submodules.self_attention.submodules.core_attention = attention


@patch(
    "megatron-core",
    symptom="a checkpoint with a norm that the layer of another machine does not know: mlp.linear_fc1.layer_norm_",
    trigger="a mixture-of-experts model is saved with the local layer and loaded with Transformer Engine's",
    why="the local layer names the norm before the experts as one fused into a linear layer, which none is there",
    versions=_TESTED,
    can_go_when="the local layer's sharded_state_dict_keys_map leaves that norm out where there are experts",
)
def name_norm_before_experts(spec: Any) -> None:
    """Name that norm in checkpoints as Transformer Engine's layer does, where nothing fuses it."""
    del spec.submodules.sharded_state_dict_keys_map["pre_mlp_layernorm."]


@patch(
    "megatron-core",
    symptom="NameError: name 'te_general_gemm' is not defined",
    trigger="a router with moe_router_dtype, without Transformer Engine",
    why="moe_utils asks whether the name is None without having given it a value where the import failed",
    versions=("0.16.1",),
    can_go_when="megatron-core below 0.19 is no longer supported",
)
def name_missing_gemm() -> None:
    """Give the name the value that it is compared with. Safe to call again."""
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


@patch(
    "megatron-core",
    symptom="TypeError: all_to_all_single(): incompatible function arguments",
    trigger="experts' tokens are exchanged on CPU",
    why="sizes become numbers only on their way from a GPU; tensors that are on CPU already stay tensors",
    versions=_TESTED,
    can_go_when="maybe_move_tensor_to_cpu(as_numpy=True) answers in numbers for a CPU tensor",
)
def give_sizes_as_numbers() -> None:
    """Let the dispatcher's sizes be numbers on CPU too. Nothing where CUDA exists. Safe to call again."""
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    if not torch.cuda.is_available():
        original = moe_utils.maybe_move_tensor_to_cpu
        token_dispatcher.maybe_move_tensor_to_cpu = functools.partial(_as_numbers, original)


def _as_numbers(original: Any, tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    tensor = original(tensor, as_numpy, record_stream)
    if as_numpy and isinstance(tensor, torch.Tensor):
        return tensor.numpy()
    return tensor
