"""The trainer's side of weight transfer: new weights into running engines, through vLLM's own sessions.

Every trainer rank has a `WeightPublisher` and enters its methods with the others. Rank 0 speaks with the engines.
Each pipeline stage, and each rank with experts of its own, sends what it has: over gloo from a CPU, over NCCL
from a GPU. Nothing here imports vLLM unless the trainer is on a GPU, as its engines are then.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from megatron_empg.weights.sync.broadcast_transport import BroadcastTransport
from megatron_empg.weights.sync.engine_control import EngineControl
from megatron_empg.weights.sync.source import CheckedStream, SenderParts, SharedSource, WeightSource, WholeSource
from megatron_empg.weights.sync.together import PublishingRanks, RankStopped, SingleProcess, together


@dataclass(frozen=True)
class PublishReport:
    """What a publication did; `bytes` and `tensors` are those that each engine got, from all ranks together."""

    seconds: float
    """From the first pause to the last resume."""
    bytes: int
    tensors: int


@dataclass(frozen=True)
class PartSent:
    """What one rank, or all, have sent."""

    bytes: int
    tensors: int


class WeightPublisher:
    """Sends weights to all engines at once, from CPU over gloo or from a GPU over NCCL.

    `device`: the trainer's, which decides the way. `timeout`: seconds that one `publish`, or one `connect`, may
    take where it is not told otherwise; an engine that fails ends it at once, one that falls silent when its time
    is over. `host`: the interface of rank 0's machine that the engines can reach. `ranks`: those that enter every
    method together; this process, if not given.
    """

    def __init__(
        self,
        engine_urls: Sequence[str],
        token: str,
        *,
        device: torch.device | str,
        timeout: float = 120.0,
        host: str = "127.0.0.1",
        ranks: PublishingRanks | None = None,
    ) -> None:
        self._device = torch.device(device)
        self._timeout = timeout
        self._ranks = ranks or SingleProcess()
        self._engines: EngineControl | None = None
        if self._ranks.rank == 0:
            self._engines = EngineControl(engine_urls, token, timeout)
        self._transport = BroadcastTransport(self._engines, engine_urls, host, self._ranks, self._device)
        self._connected = False

    def connect(self, source: WeightSource, seconds: float | None = None) -> None:
        """Join the engines in a group, in so many seconds of rank 0's clock.

        Raises WeightTransferError, or ValueError for a dtype that is not sent.
        """
        with self._within(seconds):
            try:
                self._connect(source)
            except RankStopped as stopped:
                self._disconnect()
                raise stopped.error() from None

    def publish(self, source: WeightSource, version: int, seconds: float | None = None) -> PublishReport:
        """Pause, send, set `version`, resume, in so many seconds of rank 0's clock; connects first where there is
        no connection. Each rank runs its source to the end, also where that raises.

        Raises WeightTransferError, and what the source raises. Engines that were paused stay paused then: they may
        hold half of the weights (resumed, they would crash) or new ones under the old version (what they play
        would say the wrong one). Another `publish` brings them back, of this or of another publisher.
        """
        started = time.perf_counter()
        with self._within(seconds):
            try:
                sent = self._publish(source, version)
            except RankStopped as stopped:
                self._disconnect()
                raise stopped.error() from None
        return PublishReport(time.perf_counter() - started, sent.bytes, sent.tensors)

    def close(self) -> None:
        """Leave the group; the engines go on with the weights they have."""
        self._disconnect()
        if self._engines:
            self._engines.close()

    @contextlib.contextmanager
    def _within(self, seconds: float | None) -> Iterator[None]:
        if self._engines is None:
            yield
            return
        with self._engines.within(self._timeout if seconds is None else seconds):
            yield

    def _publish(self, source: WeightSource, version: int) -> PartSent:
        if not self._connected:
            self._connect(source)
        seconds = together(self._ranks, "pause", self._open)[0]
        parts = self._parts(source)
        stream = self._transport.stream(parts)
        sent = together(self._ranks, "transfer", partial(self._send, parts, stream, seconds, version))
        of_all = PartSent(0, 0)
        for of_rank in sent:
            of_all = PartSent(of_all.bytes + of_rank.bytes, of_all.tensors + of_rank.tensors)
        return of_all

    def _parts(self, source: WeightSource) -> SenderParts:
        """The source as this rank sends it; rank 0 sends all of one that is not shared."""
        if isinstance(source, SharedSource):
            return source
        return WholeSource(source, self._ranks.rank)

    def _connect(self, source: WeightSource) -> None:
        self._disconnect()
        self._transport.connect(self._parts(source))
        self._connected = True

    def _open(self) -> float:
        """Rank 0 pauses the engines; the seconds that are left."""
        if self._engines is None:
            return 0.0
        self._engines.pause()
        self._transport.begin()
        return self._engines.remaining()

    def _send(self, source: SenderParts, stream: CheckedStream, seconds: float, version: int) -> PartSent:
        """This rank's part, to its end in any case: others gather with it."""
        try:
            self._transport.send(source, stream, seconds)
            if self._engines is not None:
                self._engines.set_version(str(version))
        except BaseException:
            with contextlib.suppress(Exception):
                stream.drain()
            raise
        if self._engines is not None:
            self._engines.resume()
        return PartSent(stream.bytes, stream.tensors)

    def _disconnect(self) -> None:
        self._connected = False
        self._transport.close()
