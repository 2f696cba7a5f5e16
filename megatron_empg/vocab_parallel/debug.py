"""The debug switch: checks that cost a collective or a host synchronisation, off by default."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor

from megatron_empg.vocab_parallel.collectives import ranks_that_differ

_enabled = os.environ.get("MEGATRON_EMPG_DEBUG", "0") not in {"", "0"}


def debug_enabled() -> bool:
    """Whether the checks run: environment variable ``MEGATRON_EMPG_DEBUG=1``, or inside `debug_checks`."""
    return _enabled


@contextmanager
def debug_checks(enabled: bool = True) -> Iterator[None]:
    """Switch the checks on (or off) inside the block; the same on all ranks, as they communicate."""
    global _enabled
    before, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = before


def require_same_on_all_ranks(name: str, tensor: Tensor, group: dist.ProcessGroup | None) -> None:
    """Raise ValueError on every rank of `group` unless `tensor` is the same on all of them."""
    differs = ranks_that_differ(tensor, group)
    if differs:
        raise ValueError(
            f"{name} must be the same on all tensor-parallel ranks, but on ranks {differs} of the group it "
            "differs from rank 0; compute the loss from log-probs and entropies alike on every rank"
        )
