"""One gloo group between trainer rank 0 and every engine worker, apart from all other process groups."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

WINDOW_BYTES = 64 << 20
"""Bytes under way at once."""
_PREFIX = "empg_weight_transfer"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_from_name(name: str) -> torch.dtype:
    """The dtype of that name. Raises ValueError for one that weights are not sent in."""
    if name not in _DTYPES:
        raise ValueError(f"weights are sent as {', '.join(_DTYPES)}, not {name}")
    return _DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The name `dtype_from_name` reads back. Raises ValueError for another dtype."""
    name = str(dtype).removeprefix("torch.")
    dtype_from_name(name)
    return name


PORT_VARIABLE = "EMPG_WEIGHTS_PORT"
"""Environment variable with the port at which engines meet trainer rank 0, for clusters that open few ports."""


def rendezvous_port() -> int:
    """The port that the environment asks for; 0, a free one, where it asks for none. Raises ValueError."""
    given = os.environ.get(PORT_VARIABLE, "")
    if not given:
        return 0
    if not given.isascii() or not given.isdigit() or not 1 <= int(given) <= 65535:
        raise ValueError(f"{PORT_VARIABLE} is {given!r}; it must be a port, 1 to 65535, or not be set")
    return int(given)


def open_store(host: str, world_size: int, timeout: float) -> dist.TCPStore:
    """Rank 0's rendezvous at `rendezvous_port` of that interface alone; `.port` goes to the others."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # for a group after one that broke
    listening.bind((host, rendezvous_port()))
    listening.listen()
    port = listening.getsockname()[1]
    return dist.TCPStore(
        host,
        port,
        world_size,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
        master_listen_fd=listening.detach(),  # else the store would listen on every interface
    )


class BroadcastGroup:
    """Broadcasts CPU tensors from rank 0. Built without `init_process_group`: no global state."""

    def __init__(self, host: str, store: dist.TCPStore, rank: int, world_size: int, timeout: float) -> None:
        """Blocks until all `world_size` ranks are there; raises RuntimeError after `timeout` seconds."""
        self._store: dist.TCPStore | None = store
        self._limit = timedelta(seconds=timeout)
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = self._limit
        options._devices = [_gloo_device(host)]
        prefixed = dist.PrefixStore(_PREFIX, store)
        self._group: dist.ProcessGroupGloo | None = dist.ProcessGroupGloo(prefixed, rank, world_size, options)

    @classmethod
    def join(cls, host: str, port: int, rank: int, world_size: int, timeout: float) -> BroadcastGroup:
        """Join the group whose store rank 0 opened at host:port."""
        limit = timedelta(seconds=timeout)
        return cls(host, dist.TCPStore(host, port, world_size, False, limit), rank, world_size, timeout)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send (rank 0) or receive in place (all others). Raises RuntimeError on a lost peer or a timeout."""
        for _ in self.stream([tensor]):
            pass

    def stream(self, tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Broadcast one after the other; yields each when it is through, while those behind it are under way.

        What comes next is made, or used, while gloo sends or receives. Holds at most WINDOW_BYTES and one tensor.
        """
        under_way: deque[tuple[torch.Tensor, Any]] = deque()
        size = 0
        for tensor in tensors:
            under_way.append((tensor, self._start(tensor)))
            size += tensor.nbytes
            while size > WINDOW_BYTES:
                done, work = under_way.popleft()
                work.wait(self._limit)
                size -= done.nbytes
                yield done
        for done, work in under_way:
            work.wait(self._limit)
            yield done

    def _start(self, tensor: torch.Tensor) -> Any:
        if self._group is None:
            raise RuntimeError("the weight transfer group is closed")
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.timeout = self._limit
        return self._group.broadcast([tensor], options)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Drop the connections; a peer still waiting in a broadcast gets an error."""
        self._group = None  # gloo's connections close when the group is freed, not before
        self._store = None  # and with it the port


def _gloo_device(host: str) -> dist.ProcessGroupGloo.Device:
    """Gloo's transport: loopback when the rendezvous is, else the interface that reaches other machines."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if loopback:
        return dist.ProcessGroupGloo.create_device(hostname=host)
    return dist.ProcessGroupGloo.create_default_device()
