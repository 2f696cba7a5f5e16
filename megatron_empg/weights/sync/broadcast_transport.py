"""Weights by broadcasts: every sender among the trainer's ranks has its own group with all engine workers."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

import torch

from megatron_empg.weights.sync.broadcast import dtype_name, rendezvous_port
from megatron_empg.weights.sync.broadcast_sender import (
    COLLECTIVE_SHARE,
    Address,
    BroadcastSender,
    BroadcastSession,
    announced,
)
from megatron_empg.weights.sync.engine_control import EngineControl
from megatron_empg.weights.sync.source import AssignedTensor, CheckedStream, SenderParts, wire_dtype
from megatron_empg.weights.sync.together import PublishingRanks, together


class BroadcastTransport:
    """A trainer rank's. Rank 0 has the engines and is the first sender; others send or help to make tensors."""

    def __init__(
        self,
        engines: EngineControl | None,
        engine_urls: Sequence[str],
        host: str,
        ranks: PublishingRanks,
        device: torch.device,
    ) -> None:
        self._engines, self._ranks, self._device = engines, ranks, device
        self._host = host if ranks.rank == 0 or _is_loopback(host) else address_towards(engine_urls[0])
        self._session: BroadcastSession | None = None
        self._sender: BroadcastSender | None = None
        self._served: frozenset[torch.dtype] = frozenset()
        """The dtypes of the engines' weights."""

    def connect(self, source: SenderParts) -> None:
        """Bring all engines' workers to every sender. Collective. Raises RankStopped."""
        world_size, seconds = together(self._ranks, "world size", self._measure)[0]

        def listen() -> tuple[int, Address] | None:
            return self._listen(source, world_size, seconds * COLLECTIVE_SHARE)

        listening = [found for found in together(self._ranks, "connect", listen) if found is not None]
        addresses = [address for _sender, address in sorted(listening)]
        senders = 1 + max(sent.sender for stage in source.stages() for sent in stage)
        if len(addresses) != senders:
            raise ValueError(
                f"{len(addresses)} of the {senders} trainer ranks that send are there; give every trainer rank a "
                "publisher with ranks=TrainerRanks() and enter its methods on all"
            )
        together(self._ranks, "connect", lambda: self._meet(addresses, seconds * COLLECTIVE_SHARE))
        together(self._ranks, "connect", self._join)

    def _measure(self) -> tuple[int, float]:
        """Members of every group, and seconds that are left; rank 0's count."""
        if self._engines is None:
            return 0, 0.0
        return 1 + sum(self._engines.read_world_sizes()), self._engines.remaining()

    def _listen(self, source: SenderParts, world_size: int, timeout: float) -> tuple[int, Address] | None:
        """Where this rank waits for workers, with its number among the senders; None if it is none."""
        for stage in source.stages():
            for sent in stage:
                dtype_name(sent.dtype)
        if source.sender is None:
            return None
        port = rendezvous_port() if source.sender == 0 else 0
        self._sender = BroadcastSender(self._host, port, world_size, timeout, self._device)
        return source.sender, self._sender.address

    def _meet(self, addresses: list[Address], timeout: float) -> None:
        """Rank 0 meets the workers first, and hears which engine refuses; no other sender waits for that one."""
        if self._engines is not None and self._sender is not None:
            self._session = BroadcastSession(self._engines)
            self._session.join(addresses, self._sender, timeout)

    def _join(self) -> None:
        if self._sender is None:
            return
        if self._session is None:
            self._sender.join()
        else:
            self._session.wait_joined()
        self._served = frozenset(self._sender.serves())

    def begin(self) -> None:
        """Begin a session in the engines; rank 0 does."""
        if self._session is None or self._engines is None:
            return
        try:
            self._session.begin()
        except BaseException:
            self._engines.abandon_update()  # some engines have begun one
            raise

    def stream(self, source: SenderParts) -> CheckedStream:
        """What this rank is to send. Making it communicates nothing."""
        own: list[AssignedTensor] = []
        for stage in source.stages():
            own += [sent for sent in stage if sent.sender == source.sender]
        declared = [(sent.name, sent.dtype, sent.shape) for sent in own]
        return CheckedStream(declared, source.own_part(), device=self._device, served=self._served)

    def send(self, source: SenderParts, stream: CheckedStream, seconds: float) -> None:
        """This rank's part. On rank 0 it returns when the engines hold every weight, checked.

        Raises WeightTransferError, and whatever the source raises.
        """
        if self._sender is None:
            stream.drain()
        elif self._session is None or self._engines is None:
            self._sender.send(stream, seconds)
        else:
            try:
                self._session.send(announced(self._wire_stages(source)), self._sender, stream)
            except BaseException:
                self._sender.close()  # wakes the engines that still wait for a tensor
                self._engines.abandon_update()
                raise

    def _wire_stages(self, source: SenderParts) -> list[list[AssignedTensor]]:
        stages = []
        for stage in source.stages():
            stages.append([replace(sent, dtype=wire_dtype(sent.dtype, self._served)) for sent in stage])
        return stages

    def close(self) -> None:
        if self._sender:
            self._sender.close()
        if self._session:
            self._session.close()
        self._sender, self._session = None, None


def address_towards(url: str) -> str:
    """The address of this machine from which it would reach that server; nothing is sent."""
    split = urlsplit(url)
    family, _, _, _, place = socket.getaddrinfo(split.hostname, split.port or 80, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as asked:
        asked.connect(place)
        return str(asked.getsockname()[0])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
