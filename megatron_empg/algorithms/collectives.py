"""The one thing these algorithms ask of torch.distributed: a reduction that is a no-op without a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_empg.common.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

Group = Any
"""A torch.distributed process group; None is this process alone."""


def reduce_sum(values: Tensor, group: Group | None) -> Tensor:
    """Elementwise sum over the ranks of ``group``. Every rank must call it."""
    if group is not None:
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.SUM, group=group)
    return values


def reduce_max(values: Tensor, group: Group | None) -> Tensor:
    """Elementwise maximum over the ranks of ``group``. Every rank must call it."""
    if group is not None:
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX, group=group)
    return values


def raise_together(fault: str | None, group: Group | None, device: torch.device) -> None:
    """Raise ValueError on every rank of ``group`` when any rank found a fault.

    Raised on one rank only, the others would wait in the next collective until it times out.
    """
    faults = reduce_max(torch.tensor([float(fault is not None)], device=device), group)
    if fault is not None:
        raise ValueError(fault)
    if faults.item() > 0:
        raise ValueError("another rank of the group was given invalid values; its own error names them")
