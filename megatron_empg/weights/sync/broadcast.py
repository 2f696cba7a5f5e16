"""A gloo group between a trainer rank that sends and every engine worker, apart from all other process groups."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Generator, Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron_empg.common.dtypes import DTYPE_BYTES, dtype_of, name_of
from megatron_empg.upstream.torch_distributed import broadcast_from_first, gloo_group

WINDOW_BYTES = 64 << 20
"""Bytes under way at once."""
_PREFIX = "empg_weight_transfer"


CHECKSUM_DTYPE = torch.int64


def dtype_from_name(name: str) -> torch.dtype:
    """The dtype of that name. Raises ValueError for one that neither weights nor checksums are sent in."""
    if name == name_of(CHECKSUM_DTYPE):
        return CHECKSUM_DTYPE
    if name not in DTYPE_BYTES:
        raise ValueError(f"weights are sent as {', '.join(DTYPE_BYTES)}, not {name}")
    return dtype_of(name)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype that weights are sent in. Raises ValueError for another one."""
    name = name_of(dtype)
    if name not in DTYPE_BYTES:
        raise ValueError(f"weights are sent as {', '.join(DTYPE_BYTES)}, not {name}")
    return name


PORT_VARIABLE = "EMPG_WEIGHTS_PORT"
"""Environment variable with the port at which engines meet trainer rank 0, for clusters that open few ports. Other
senders wait at free ports, as gloo's own connections do."""


def rendezvous_port() -> int:
    """The port that the environment asks for; 0, a free one, where it asks for none. Raises ValueError."""
    given = os.environ.get(PORT_VARIABLE, "")
    if not given:
        return 0
    if not given.isascii() or not given.isdigit() or not 1 <= int(given) <= 65535:
        raise ValueError(f"{PORT_VARIABLE} is {given!r}; it must be a port, 1 to 65535, or not be set")
    return int(given)


def open_store(host: str, port: int, world_size: int, timeout: float) -> dist.TCPStore:
    """A sender's rendezvous at that port, or a free one for 0, of that interface alone; `.port` says which."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # for a group after one that broke
    listening.bind((host, port))
    listening.listen()
    return dist.TCPStore(
        host,
        listening.getsockname()[1],
        world_size,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
        master_listen_fd=listening.detach(),  # else the store would listen on every interface
    )


def workers_at(store: dist.Store, world_size: int) -> int:
    """How many of a sender's `world_size - 1` workers have come to its store and said what they serve."""
    prefixed = dist.PrefixStore(_PREFIX, store)
    return sum(prefixed.check([f"serves/{rank}"]) for rank in range(1, world_size))


class BroadcastGroup:
    """Broadcasts CPU tensors from rank 0. Built without `init_process_group`: no global state."""

    def __init__(
        self,
        host: str,
        store: dist.TCPStore,
        rank: int,
        world_size: int,
        timeout: float,
        *,
        serves: torch.dtype | None = None,
    ) -> None:
        """Blocks until all `world_size` ranks are there; raises RuntimeError after `timeout` seconds.

        `serves`: the dtype of a worker's weights, for the sender to ask.
        """
        self._store: dist.Store | None = store
        self._limit = timedelta(seconds=timeout)
        self._world_size = world_size
        prefixed = dist.PrefixStore(_PREFIX, store)
        if serves is not None:
            prefixed.set(f"serves/{rank}", name_of(serves))
        self._group: dist.ProcessGroupGloo | None = gloo_group(
            prefixed, rank, world_size, host=host, timeout=self._limit
        )

    @classmethod
    def join(
        cls,
        host: str,
        port: int,
        rank: int,
        world_size: int,
        timeout: float,
        *,
        serves: torch.dtype | None = None,
    ) -> BroadcastGroup:
        """Join the group whose store rank 0 opened at host:port."""
        store = dist.TCPStore(host, port, world_size, False, timedelta(seconds=timeout))
        return cls(host, store, rank, world_size, timeout, serves=serves)

    def serves(self) -> set[torch.dtype]:
        """The dtypes that the other ranks serve. Raises RuntimeError where one of them has not said."""
        if self._store is None:
            raise RuntimeError("the weight transfer group is closed")
        prefixed = dist.PrefixStore(_PREFIX, self._store)
        return {dtype_of(prefixed.get(f"serves/{rank}").decode()) for rank in range(1, self._world_size)}

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send (rank 0) or receive in place (all others). Raises RuntimeError on a lost peer or a timeout."""
        for _ in self.stream([tensor]):
            pass

    def stream(
        self, tensors: Iterable[torch.Tensor], window: int = WINDOW_BYTES
    ) -> Generator[torch.Tensor, None, None]:
        """Broadcast one after the other; yields each when it is through, while those behind it are under way.

        What comes next is made, or used, while gloo sends or receives. Holds `window` bytes and one tensor.
        """
        under_way: deque[tuple[torch.Tensor, Any]] = deque()
        size = 0
        try:
            for tensor in tensors:
                under_way.append((tensor, self._start(tensor)))
                size += tensor.nbytes
                while size > window:
                    done = self._first_of(under_way)
                    size -= done.nbytes
                    yield done
            while under_way:
                yield self._first_of(under_way)
        finally:
            under_way.clear()  # one that an error's traceback holds would keep the connections open

    def _first_of(self, under_way: deque[tuple[torch.Tensor, Any]]) -> torch.Tensor:
        under_way[0][1].wait(self._limit)
        return under_way.popleft()[0]

    def _start(self, tensor: torch.Tensor) -> Any:
        if self._group is None:
            raise RuntimeError("the weight transfer group is closed")
        return broadcast_from_first(self._group, tensor, self._limit)

    def close(self) -> None:
        """Drop the connections; a peer still waiting in a broadcast gets an error."""
        self._group = None  # gloo's connections close when the group is freed, not before
        self._store = None  # and with it the port
