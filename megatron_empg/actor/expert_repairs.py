"""Names that megatron-core's experts take for granted where CUDA or Transformer Engine is missing."""

import functools
from typing import Any

import torch


def apply() -> None:
    """Make experts run without Transformer Engine, and without CUDA. Safe to call again."""
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    if not hasattr(moe_utils, "te_general_gemm"):  # version 0.16 asks for it without having imported it
        moe_utils.te_general_gemm = None
    if not torch.cuda.is_available():
        original = moe_utils.maybe_move_tensor_to_cpu
        token_dispatcher.maybe_move_tensor_to_cpu = functools.partial(_on_cpu, original)


def _on_cpu(original: Any, tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Sizes for the all-to-all become numbers only on their way from a GPU."""
    tensor = original(tensor, as_numpy, record_stream)
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor
