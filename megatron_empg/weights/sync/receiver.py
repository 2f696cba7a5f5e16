"""An engine worker's end of the senders' groups: whole tensors from several trainer ranks, in one order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_empg.weights.sync.broadcast import WINDOW_BYTES, BroadcastGroup, dtype_from_name
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
    """One worker's receiving end. It receives from all senders at once and takes tensors as announced."""

    def __init__(self, worker: int, serves: torch.dtype) -> None:
        """`worker`: its rank in its engine; `serves`: the engine's dtype, which senders are told."""
        self._worker, self._serves = worker, serves
        self._groups: list[BroadcastGroup] = []

    def join(self, meeting: SenderAddresses) -> None:
        """Leave the groups of before, and enter the senders' one after the other."""
        self.close()  # a trainer that lost its groups comes back with new ones
        rank = self._worker + meeting.rank_offset
        for host, port in meeting.addresses:
            self._groups.append(
                BroadcastGroup.join(
                    str(host), int(port), rank, meeting.world_size, meeting.timeout, serves=self._serves
                )
            )

    def weights(self, announced: AnnouncedTensors, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """The weights as they arrive. At the end every checksum is held against its sender's.

        Raises ChecksumError for tensors that changed, and RuntimeError for a sender that went away.
        """
        if not self._groups:
            raise RuntimeError("no weight transfer group: /init_weight_transfer_engine comes first")
        window = WINDOW_BYTES // len(self._groups)
        arrivals = [Arrival(f"worker {self._worker}") for _ in self._groups]
        with ExitStack() as open_streams:
            arriving = []
            for sender, group in enumerate(self._groups):
                stream = group.stream(_room(announced, sender, device), window)
                arriving.append(open_streams.enter_context(closing(stream)))
            for name, sender in zip(announced.names, announced.senders, strict=True):
                yield from arrivals[sender].pairs([(name, next(arriving[sender]))])
        for arrival in arrivals:
            arrival.check()

    def close(self) -> None:
        """Leave the groups: senders that still wait for this worker get an error."""
        for group in self._groups:
            group.close()
        self._groups = []


def _room(announced: AnnouncedTensors, sender: int, device: torch.device) -> Iterator[Tensor]:
    """Memory for each tensor that one sender sends."""
    described = zip(announced.senders, announced.dtype_names, announced.shapes, strict=True)
    for its_sender, dtype_name, shape in described:
        if its_sender == sender:
            yield torch.empty(shape, dtype=dtype_from_name(dtype_name), device=device)
