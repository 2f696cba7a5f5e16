"""What ranks know alike: rank 0's answer, everyone's values, sums over a group.

Every rank of the group enters each of these. torch is imported when one is called.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

RankGroup = Any
"""A torch.distributed process group; None is this process alone."""
Value = TypeVar("Value")
CHUNK_BYTES = 64 << 20
"""Bytes on the device at once while `broadcast_bytes` sends."""


def ranks_of(group: RankGroup | None) -> int:
    """Size of the group; None is a group of one."""
    if group is None:
        return 1
    return int(group.size())


def sum_over_ranks_(values: Tensor, group: RankGroup | None) -> Tensor:
    """The elementwise sum over the ranks of ``group``, in place."""
    if ranks_of(group) > 1 and values.numel() > 0:
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.SUM, group=group)
    return values


def max_over_ranks_(values: Tensor, group: RankGroup | None) -> Tensor:
    """The elementwise maximum over the ranks of ``group``, in place."""
    if ranks_of(group) > 1 and values.numel() > 0:
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX, group=group)
    return values


def raise_together(fault: str | None, group: RankGroup | None, device: torch.device) -> None:
    """Raise ValueError on every rank of ``group`` when any rank found a fault.

    Raised on one rank only, the others would wait in the next collective until it times out.
    """
    faults = max_over_ranks_(torch.tensor([float(fault is not None)], device=device), group)
    if fault is not None:
        raise ValueError(fault)
    if faults.item() > 0:
        raise ValueError("another rank of the group was given invalid values; its own error names them")


def agreed(flag: bool, device: torch.device) -> bool:
    """Rank 0's flag, on every rank. ``device`` is the ranks'."""
    answer = torch.tensor([int(flag)], device=device)
    torch.distributed.broadcast(answer, 0)
    return bool(answer.item())


def on_first_rank(work: Callable[[], Value], error: type[EmpgError]) -> Value:
    """What `work` returns on rank 0, on every rank. Its OSError or `error` is raised as `error` on every rank."""
    answer: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            answer[0] = work()
        except (OSError, error) as fault:
            answer[1] = str(fault)
    torch.distributed.broadcast_object_list(answer)
    if answer[1] is not None:
        raise error(answer[1])
    result: Value = answer[0]
    return result


def gathered(value: Value) -> list[Value]:
    """Every rank's value, on every rank, in the order of ranks."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def broadcast_bytes(data: memoryview, device: torch.device) -> bytes:
    """Rank 0's bytes, on every other rank; rank 0 itself gets none back. ``device`` is the ranks'.

    Holds one chunk on the device, and besides the result one copy of it on the host for a moment.
    """
    sending = torch.distributed.get_rank() == 0
    size = torch.tensor([len(data)], device=device)
    torch.distributed.broadcast(size, 0)
    if sending:
        whole = _as_tensor(data)
    else:
        whole = torch.empty(int(size), dtype=torch.uint8)
    if len(whole):
        parts = whole.split(CHUNK_BYTES)
    else:
        parts = ()
    for part in parts:
        chunk = part.to(device)
        torch.distributed.broadcast(chunk, 0)
        if not sending and chunk is not part:
            part.copy_(chunk)
    if sending:
        return b""
    return whole.numpy().tobytes()


def _as_tensor(data: memoryview) -> Tensor:
    """The same memory, which is only read."""
    if not len(data):
        return torch.empty(0, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(data, dtype=torch.uint8)
