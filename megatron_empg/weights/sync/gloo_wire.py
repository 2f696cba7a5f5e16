"""Tensors between CPUs, by a gloo group without global state."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron_empg.upstream.torch_distributed import broadcast_from_first, gloo_group
from megatron_empg.weights.sync.waiting import Refused, wait_until


class GlooBroadcast:
    """One that was started."""

    def __init__(self, work: Any) -> None:
        self._work: Any = work

    def wait(self, limit: timedelta, refused: Refused) -> None:
        """Until it is through. Raises RuntimeError on a lost peer or when `limit` is over, and what `refused`
        raises."""
        try:
            wait_until(self._is_completed, limit, refused)
            self._work.wait()  # raises what went wrong
        finally:
            self._work = None  # an error's traceback would hold it, and with it the group's connections

    def _is_completed(self) -> bool:
        return bool(self._work.is_completed())


class GlooWire:
    """One rank's end. Broadcasts come from rank 0."""

    def __init__(self, host: str, store: dist.Store, rank: int, world_size: int, limit: timedelta) -> None:
        """Blocks until all ranks are there; raises RuntimeError when `limit` is over."""
        self._limit = limit
        self._group: dist.ProcessGroupGloo | None = gloo_group(store, rank, world_size, host=host, timeout=limit)

    def start(self, tensor: torch.Tensor) -> GlooBroadcast:
        """Send the tensor (rank 0), or receive it in place (all others)."""
        assert self._group is not None, "the group is closed"
        return GlooBroadcast(broadcast_from_first(self._group, tensor, self._limit))

    def close(self) -> None:
        """Drop the connections; a peer still waiting in a broadcast gets an error."""
        # gloo's connections close when the group is freed, which waits for its own broadcasts until their limit is
        # over; `abort` does nothing (torch 2.13).
        self._group = None
