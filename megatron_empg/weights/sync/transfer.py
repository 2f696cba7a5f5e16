"""The trainer's side of weight transfer: new weights into running engines, through vLLM's own sessions.

Every trainer rank has a `WeightPublisher` and enters its methods with the others. Rank 0 speaks with the engines.
Over gloo each pipeline stage, and each rank with experts of its own, sends what it has; over NCCL rank 0 sends
all, which the others make with it. Nothing here imports vLLM unless the engines are on NCCL.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from megatron_empg.weights.sync.engine_control import EngineControl
from megatron_empg.weights.sync.gloo_transport import GlooTransport
from megatron_empg.weights.sync.nccl_sender import NcclTransport
from megatron_empg.weights.sync.source import Parts, SharedSource, Stream, WeightSource, Whole
from megatron_empg.weights.sync.together import Alone, Ranks, Stopped, together

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Times that a publication is tried, each time whole."""
ATTEMPT_SHARE = 0.5
"""Of the time that is left, what an attempt may take that another one may follow."""


@dataclass(frozen=True)
class PublishReport:
    """What a publication did; `bytes` and `tensors` are those that each engine got, from all ranks together."""

    seconds: float
    """From the first pause to the last resume."""
    bytes: int
    tensors: int
    attempts: int = 1
    left_out: tuple[str, ...] = ()
    """Engines that did not answer; they have old weights, or half of the new ones."""


@dataclass(frozen=True)
class PartSent:
    """What one rank, or all, have sent."""

    bytes: int
    tensors: int


class WeightPublisher:
    """Sends weights to all engines at once, from CPU over gloo or from a GPU over vLLM's nccl.

    `device`: the trainer's, which decides the way. `timeout`: seconds that one `publish`, or one `connect`, may
    take in all, its attempts together; an engine that fails ends an attempt at once, one that falls silent when
    its time is over. `host`: the interface of rank 0's machine that the engines can reach. `ranks`: those that
    enter every method together; this process, if not given.
    """

    def __init__(
        self,
        engine_urls: Sequence[str],
        token: str,
        *,
        device: torch.device | str,
        timeout: float = 120.0,
        host: str = "127.0.0.1",
        ranks: Ranks | None = None,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._device = torch.device(device)
        self._timeout = timeout
        self._attempts = attempts
        self._ranks = ranks or Alone()
        self._engines = EngineControl(engine_urls, token, timeout) if self._ranks.rank == 0 else None
        self._transport: GlooTransport | NcclTransport
        if self._device.type == "cuda":
            self._transport = NcclTransport(self._engines, host, self._device, self._ranks)
        else:
            self._transport = GlooTransport(self._engines, engine_urls, host, self._ranks)
        self._connected = False
        self._sound = True
        """The engines have whole weights, under their version."""

    def connect(self, source: WeightSource) -> None:
        """Join the engines in a group. Raises WeightTransferError, or ValueError for a dtype not sent."""
        with self._within(self._timeout), self._within(self._attempt_time(1)):
            try:
                self._connect(source)
            except Stopped as stopped:
                self._disconnect()
                raise stopped.error() from None

    def publish(self, source: WeightSource, version: int) -> PublishReport:
        """Pause, send, set `version`, resume; connects first where there is no connection.

        A failed transfer is tried again, whole, with the engines that still answer, which stay paused meanwhile;
        one that does not is left out until it is healthy at a later call. Each rank runs its source to the end,
        also where it raises.

        Raises WeightTransferError when no attempt went well, and at once what the source raises. Then engines
        stay paused that hold half of the weights (resumed, they would crash) or new ones under the old version
        (what they play would say the wrong one): publish again to bring them back.
        """
        started = time.perf_counter()
        with self._within(self._timeout):
            self._take_back()
            attempt, sent = 1, self._tried(source, version, 1)
            while sent is None:
                attempt += 1
                sent = self._tried(source, version, attempt)
        left_out = tuple(self._engines.left_out) if self._engines else ()
        return PublishReport(time.perf_counter() - started, sent.bytes, sent.tensors, attempt, left_out)

    def _tried(self, source: WeightSource, version: int, attempt: int) -> PartSent | None:
        """What was sent; None where another attempt is to be made. Raises what `publish` does."""
        try:
            with self._within(self._attempt_time(attempt)):
                return self._attempt(source, version)
        except Stopped as stopped:
            self._disconnect()
            if self._may_go_on(stopped, attempt):
                return None
            if self._engines and self._sound:
                self._engines.resume_after_failure()
            raise stopped.error() from None

    def close(self) -> None:
        """Leave the group; the engines go on with the weights they have."""
        self._disconnect()
        if self._engines:
            self._engines.close()

    @contextlib.contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        if self._engines is None:
            yield
            return
        with self._engines.within(seconds):
            yield

    def _attempt_time(self, attempt: int) -> float:
        """Seconds for it: all that are left where no other can follow."""
        if self._engines is None:
            return self._timeout
        share = ATTEMPT_SHARE if attempt < self._attempts else 1.0
        return share * self._engines.remaining()

    def _attempt(self, source: WeightSource, version: int) -> PartSent:
        if not self._connected:
            self._connect(source)
        seconds = together(self._ranks, "pause", self._open)[0]
        parts = self._parts(source)
        stream = self._transport.stream(parts)
        sent = together(self._ranks, "transfer", partial(self._send, parts, stream, seconds, version))
        return PartSent(sum(rank.bytes for rank in sent), sum(rank.tensors for rank in sent))

    def _parts(self, source: WeightSource) -> Parts:
        """The source as this rank sends it; over NCCL rank 0 sends all."""
        if self._device.type != "cuda" and isinstance(source, SharedSource):
            return source
        return Whole(source, self._ranks.rank)

    def _connect(self, source: WeightSource) -> None:
        self._disconnect()
        self._transport.connect(self._parts(source))
        self._connected = True

    def _open(self) -> float:
        """Rank 0 pauses the engines; the seconds that are left of the attempt."""
        if self._engines is None:
            return 0.0
        self._engines.pause()
        self._sound = False
        self._transport.begin()
        return self._engines.remaining()

    def _send(self, source: Parts, stream: Stream, seconds: float, version: int) -> PartSent:
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
            self._sound = True
            self._engines.resume()
        return PartSent(stream.bytes, stream.tensors)

    def _may_go_on(self, stopped: Stopped, attempt: int) -> bool:
        """Whether to try again, which rank 0 decides; without the engines that do not answer."""
        decision = False
        if self._engines and stopped.passing and attempt < self._attempts:
            self._engines.leave_out_silent()
            decision = bool(self._engines.urls) and self._engines.remaining() > 0.0
            words = "it is tried again" if decision else "no engine answers, or no time is left"
            logger.warning("%s; %s (attempt %d of %d)", stopped.error(), words, attempt, self._attempts)
        return self._ranks.gathered(decision)[0]

    def _take_back(self) -> None:
        """Engines that were left out and are healthy again take part, in a new group."""
        back = self._engines is not None and bool(self._engines.left_out) and self._engines.take_back()
        if back:
            self._sound = False
        if self._ranks.gathered(back)[0]:
            self._disconnect()

    def _disconnect(self) -> None:
        self._connected = False
        self._transport.close()
