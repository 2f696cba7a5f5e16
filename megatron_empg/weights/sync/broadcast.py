"""A group of a trainer rank that sends and every engine worker, apart from all other process groups."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist

from megatron_empg.common.dtypes import DTYPE_BYTES, dtype_of, name_of
from megatron_empg.weights.sync.gloo_wire import GlooWire
from megatron_empg.weights.sync.nccl_wire import NcclWire
from megatron_empg.weights.sync.waiting import Refused, nobody_refused

WINDOW_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Bytes under way at once, by the device they are on."""
WINDOW_TENSORS = 64
CPU = torch.device("cpu")
CLOSED = "the weight transfer group is closed"
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


def devices_at(store: dist.Store, world_size: int) -> set[str]:
    """The kinds of device that the workers which came have their weights on."""
    prefixed = dist.PrefixStore(_PREFIX, store)
    return {prefixed.get(f"device/{rank}").decode() for rank in range(1, world_size)}


class UnderWay(Protocol):
    """A broadcast that was started."""

    def wait(self, limit: timedelta, refused: Refused) -> None:
        """Until it is through. Raises RuntimeError on a lost peer, or when `limit` is over, and what `refused`
        raises."""
        ...


class Wire(Protocol):
    """What carries a group's tensors, from rank 0 to all others."""

    def start(self, tensor: torch.Tensor) -> UnderWay: ...

    def close(self) -> None:
        """A peer that still waits gets an error, or waits until its limit is over."""
        ...


@dataclass(frozen=True)
class Broadcast:
    """A tensor that is on its way."""

    tensor: torch.Tensor
    work: UnderWay
    limit: timedelta

    def wait(self, refused: Refused = nobody_refused) -> torch.Tensor:
        """The tensor, once it is through. Raises RuntimeError, and what `refused` raises."""
        self.work.wait(self.limit, refused)
        return self.tensor


class BroadcastGroup:
    """Broadcasts tensors from rank 0, by gloo from CPU memory and by NCCL from a GPU's. Built without
    `init_process_group`: no global state."""

    def __init__(
        self,
        host: str,
        store: dist.TCPStore,
        rank: int,
        world_size: int,
        timeout: float,
        *,
        device: torch.device = CPU,
        serves: torch.dtype | None = None,
        refused: Refused = nobody_refused,
    ) -> None:
        """Blocks until all `world_size` ranks are there; raises RuntimeError after `timeout` seconds.

        `device`: where this rank's tensors are; all ranks of a group are on GPUs, or none is. `serves`: the dtype
        of a worker's weights, for the sender to ask. `refused` is asked while ranks meet over NCCL.
        """
        self._store: dist.Store | None = store
        self._limit = timedelta(seconds=timeout)
        self._world_size = world_size
        prefixed = dist.PrefixStore(_PREFIX, store)
        if serves is not None:
            prefixed.set(f"device/{rank}", device.type)
            prefixed.set(f"serves/{rank}", name_of(serves))
        self._wire: Wire | None
        if device.type == "cuda":
            self._wire = NcclWire(prefixed, rank, world_size, device, self._limit, refused)
        else:
            self._wire = GlooWire(host, prefixed, rank, world_size, self._limit)

    @classmethod
    def join(
        cls,
        host: str,
        port: int,
        rank: int,
        world_size: int,
        timeout: float,
        *,
        device: torch.device = CPU,
        serves: torch.dtype | None = None,
    ) -> BroadcastGroup:
        """Join the group whose store rank 0 opened at host:port."""
        store = dist.TCPStore(host, port, world_size, False, timedelta(seconds=timeout))
        return cls(host, store, rank, world_size, timeout, device=device, serves=serves)

    def serves(self) -> set[torch.dtype]:
        """The dtypes that the other ranks serve. Raises RuntimeError where one of them has not said."""
        if self._store is None:
            raise RuntimeError(CLOSED)
        prefixed = dist.PrefixStore(_PREFIX, self._store)
        return {dtype_of(prefixed.get(f"serves/{rank}").decode()) for rank in range(1, self._world_size)}

    def start(self, tensor: torch.Tensor) -> Broadcast:
        """Begin to send (rank 0), or to receive in place (all others). Raises RuntimeError where it is closed."""
        if self._wire is None:
            raise RuntimeError(CLOSED)
        return Broadcast(tensor, self._wire.start(tensor), self._limit)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send (rank 0) or receive in place (all others). Raises RuntimeError on a lost peer or a timeout."""
        self.start(tensor).wait()

    def stream(
        self, tensors: Iterable[torch.Tensor], refused: Refused = nobody_refused
    ) -> Generator[torch.Tensor, None, None]:
        """Broadcast one after the other; yields each when it is through, while those behind it are under way."""
        return in_order((self.start(tensor) for tensor in tensors), refused)

    def close(self) -> None:
        """Drop the connections; a peer still waiting in a broadcast gets an error."""
        if self._wire is not None:
            self._wire.close()
        self._wire = None
        self._store = None  # and with it the port


def in_order(
    starting: Iterable[Broadcast], refused: Refused = nobody_refused
) -> Generator[torch.Tensor, None, None]:
    """The tensors of broadcasts that iterating starts; yields each when it is through.

    What comes next is made, or used, while those behind it are under way. Holds WINDOW_BYTES and one tensor, and
    WINDOW_TENSORS at most: a GPU's queue of work has an end too, and who fills it is blocked.
    """
    under_way: deque[Broadcast] = deque()
    size = 0
    try:
        for broadcast in starting:
            window = WINDOW_BYTES[broadcast.tensor.device.type]
            size += broadcast.tensor.nbytes
            under_way.append(broadcast)
            del broadcast
            while size > window or len(under_way) > WINDOW_TENSORS:
                done = under_way.popleft().wait(refused)
                size -= done.nbytes
                yield done
        while under_way:
            yield under_way.popleft().wait(refused)
    finally:
        # One that an error's traceback holds would keep the connections open: hence `del` above, too.
        under_way.clear()
