"""An engine worker's end of the senders' groups: whole tensors from several trainer ranks, in one order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from threading import Thread

import torch
from torch import Tensor

from megatron_empg.weights.sync.broadcast import (
    CPU,
    Broadcast,
    BroadcastGroup,
    dtype_from_name,
    in_order,
)
from megatron_empg.weights.sync.checksums import Arrival


@dataclass
class SenderAddresses:
    """Where the senders wait, each as rank 0 of a group of its own with every worker of every engine."""

    addresses: list[list[str | int]]
    """[host, port] of each sender."""
    rank_offset: int
    """Rank of this engine's first worker in every group."""
    world_size: int
    """Of every group."""
    timeout: float
    """Seconds."""


@dataclass
class AnnouncedTensors:
    """What the senders are about to broadcast, in the order in which it is taken; checksums come last.

    Example: of two senders, ``AnnouncedTensors(names=["a", "b", "empg.checksums", "empg.checksums"], …,
    senders=[0, 1, 0, 1])``.
    """

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    senders: list[int]
    """Which of the groups each tensor comes by."""


class Receiver:
    """One worker's receiving end. It receives from all senders in the order that was announced."""

    def __init__(self, worker: int, serves: torch.dtype, device: torch.device = CPU) -> None:
        """`worker`: its rank in its engine; `serves`: the engine's dtype, which senders are told; `device`: where
        the weights are."""
        self._worker, self._serves, self._device = worker, serves, device
        self._groups: list[BroadcastGroup] = []

    def join(self, meeting: SenderAddresses) -> None:
        """Leave the groups of before, and enter the senders' one after the other."""
        self.close()  # a trainer that lost its groups comes back with new ones
        rank = self._worker + meeting.rank_offset
        for host, port in meeting.addresses:
            group = BroadcastGroup.join(
                str(host),
                int(port),
                rank,
                meeting.world_size,
                meeting.timeout,
                device=self._device,
                serves=self._serves,
            )
            self._groups.append(group)

    def weights(self, announced: AnnouncedTensors) -> Iterator[tuple[str, Tensor]]:
        """The weights as they arrive. At the end every checksum is held against its sender's.

        Raises ChecksumError for tensors that changed, and RuntimeError for a sender that went away.
        """
        if not self._groups:
            raise RuntimeError("no weight transfer group: /init_weight_transfer_engine comes first")
        arrivals = [Arrival(f"worker {self._worker}") for _ in self._groups]
        with closing(in_order(self._receiving(announced))) as arriving:
            for name, sender, tensor in zip(announced.names, announced.senders, arriving, strict=True):
                yield from arrivals[sender].pairs([(name, tensor)])
        for arrival in arrivals:
            arrival.check()

    def _receiving(self, announced: AnnouncedTensors) -> Iterator[Broadcast]:
        """Begins to receive each tensor as it is asked for.

        A sender may have to help others of its stage to make theirs, so none must have to wait for a later one.
        """
        described = zip(announced.senders, announced.dtype_names, announced.shapes, strict=True)
        for sender, dtype_name, shape in described:
            room = torch.empty(shape, dtype=dtype_from_name(dtype_name), device=self._device)
            yield self._groups[sender].start(room)

    def close(self) -> None:
        """Leave the groups: senders that still wait for this worker get an error.

        All at once, since one that is broken off over NCCL may wait until the others are.
        """
        leaving = [Thread(target=group.close) for group in self._groups]
        for thread in leaving:
            thread.start()
        for thread in leaving:
            thread.join()
        self._groups = []
