"""One process group between trainer rank 0 and every engine worker, apart from all other process groups."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

_PREFIX = "empg_weight_transfer"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_dtype_name(name: str) -> torch.dtype:
    """The dtype of that name. Raises ValueError for one that weights are not sent in."""
    if name not in _DTYPES:
        raise ValueError(f"weights are sent as {', '.join(_DTYPES)}, not {name}")
    return _DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The name `check_dtype_name` reads back. Raises ValueError for another dtype."""
    name = str(dtype).removeprefix("torch.")
    check_dtype_name(name)
    return name


class BroadcastGroup:
    """Broadcasts from rank 0. Built without `init_process_group`, so it touches no global state."""

    def __init__(self, group: dist.ProcessGroup, store: dist.TCPStore, timeout: timedelta) -> None:
        self._group = group
        self._store = store
        self._timeout = timeout

    @staticmethod
    def listen(host: str, world_size: int, timeout: float) -> dist.TCPStore:
        """Rank 0's store on a free port of `host`; give its `.port` to the others."""
        return dist.TCPStore(
            host, 0, world_size, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout)
        )

    @classmethod
    def join(
        cls,
        host: str,
        port: int,
        *,
        rank: int,
        world_size: int,
        timeout: float,
        device: torch.device,
        store: dist.TCPStore | None = None,
    ) -> BroadcastGroup:
        """Blocks until all `world_size` ranks are there; raises after `timeout` seconds."""
        limit = timedelta(seconds=timeout)
        if store is None:
            store = dist.TCPStore(host, port, world_size, is_master=False, timeout=limit)
        prefixed = dist.PrefixStore(_PREFIX, store)
        group: dist.ProcessGroup
        if device.type == "cuda":
            group = dist.ProcessGroupNCCL(prefixed, rank, world_size, _nccl_options(limit))
        else:
            group = dist.ProcessGroupGloo(prefixed, rank, world_size, limit)
        return cls(group, store, limit)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send (rank 0) or receive in place (all others). Raises RuntimeError on a lost peer or a timeout."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.timeout = self._timeout
        self._group.broadcast([tensor], options).wait(self._timeout)

    def close(self) -> None:
        """Drop the group; peers still waiting in a broadcast see a lost connection."""
        self._group.shutdown()


def _nccl_options(timeout: timedelta) -> dist.ProcessGroupNCCL.Options:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return options
