"""Which kernels run: Triton on CUDA, plain PyTorch elsewhere (and on CUDA without Triton)."""

import importlib.util
import os
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from megatron_empg.vocab_parallel import torch_kernels
from megatron_empg.vocab_parallel.statistics import GradientCoefficients


class Kernels(Protocol):
    """The two operations that every implementation has; shapes and meaning are those of `torch_kernels`."""

    def shard_statistics(
        self, logits: Tensor, local_targets: Tensor, keep: Tensor, width: int, temperature: float
    ) -> tuple[Tensor, bool]: ...

    def logits_gradient(
        self,
        logits: Tensor,
        local_targets: Tensor,
        keep: Tensor,
        width: int,
        temperature: float,
        coefficients: GradientCoefficients,
        masked: bool,
        out: Tensor,
    ) -> None: ...


def kernels_for(device: torch.device) -> Kernels:
    """The kernels of a device. ``TRITON_INTERPRET=1`` chooses Triton's interpreter on CPU."""
    wanted = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return (_triton_kernels() if wanted else None) or torch_kernels


@cache
def _triton_kernels() -> Kernels | None:
    if importlib.util.find_spec("triton") is None:
        return None
    from megatron_empg.vocab_parallel import triton_kernels

    return triton_kernels
