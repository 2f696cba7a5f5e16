"""Which kernels run: Triton on CUDA, plain PyTorch elsewhere (and on CUDA without Triton)."""

from typing import Protocol

import torch
from torch import Tensor

from megatron_empg.vocab_parallel import torch_kernels
from megatron_empg.vocab_parallel.statistics import GradientCoefficients


class Kernels(Protocol):
    """The two operations; shapes and meaning as in `torch_kernels`."""

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
    """The kernels of a device."""
    return torch_kernels
