"""The trainer's end of vLLM's native "nccl" backend. vLLM is imported when a sender is made."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

import torch

from megatron_empg.weights.sync.broadcast import dtype_name, rendezvous_port
from megatron_empg.weights.sync.engine_control import EngineControl, WeightTransferError
from megatron_empg.weights.sync.source import CheckedStream, SenderParts
from megatron_empg.weights.sync.together import PublishingRanks, together


class NcclSender:
    """Sends by vLLM's own trainer engine.

    vLLM's calls block in CUDA without a limit, so each runs in a thread of its own while this one watches engines
    and clock, and aborts the communicator when it must. The thread has its own current device and stream: vLLM
    sets a stream of its own, on which the trainer would else go on training.
    """

    def __init__(self, engines: EngineControl, host: str, device: torch.device) -> None:
        from vllm.distributed.weight_transfer.base import ParamMeta
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        self._param_meta = ParamMeta
        self._engines, self._device = engines, device
        self._stream: CheckedStream | None = None
        self._native: Any = None
        info = NCCLTrainerInitInfo(
            rank=0,
            master_address=host,
            master_port=rendezvous_port() or get_open_port(),
            world_size=1 + sum(engines.world_sizes),
        )
        # This object is the source: vLLM keeps it, and every send() gives it a new stream.
        source: Any = self
        connect = partial(WeightTransferTrainerFactory.trainer_init, info, client=engines, source=source)
        try:
            self._native = self._watched("connect", connect)
        except OSError as error:  # such as the port of the group before, which is not free yet
            raise WeightTransferError("connect", {f"trainer at {host}:{info.master_port}": str(error)}) from error

    def metadata(self) -> list[Any]:
        assert self._stream is not None
        return [self._param_meta(name, dtype, tuple(shape)) for name, dtype, shape in self._stream.metadata]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        assert self._stream is not None
        return in_stream_order(iter(self._stream))

    def send(self, stream: CheckedStream) -> None:
        """One session, driven by vLLM. Raises WeightTransferError when an engine fails or time is up."""
        self._stream = stream
        try:
            self._watched("transfer", self._native.send_weights)
        except BaseException:
            self._engines.abandon_update()
            raise
        finally:
            self._stream = None

    def _watched(self, phase: str, work: Callable[[], Any]) -> Any:
        """What `work` returns, from its own thread; an engine that fails, or the time, ends the waiting."""
        result = _in_thread(partial(_on_device, self._device, work))
        while not result.done():
            trouble = self._engines.trouble()
            if trouble is None and self._engines.remaining() == 0.0:
                trouble = WeightTransferError(phase, dict.fromkeys(self._engines.urls, "not through in its time"))
            if trouble is not None:
                with contextlib.suppress(TimeoutError):  # the others' account may name the one to blame
                    result.exception(timeout=_GRACE)
                if result.done() and result.exception() is None:
                    break
                self._abort(result)
                raise self._engines.trouble() or trouble
            wait([result], timeout=_POLL)
        error, trouble = result.exception(), self._engines.trouble()
        if error is not None and trouble is not None and not isinstance(error, WeightTransferError):
            raise trouble from error  # what the engines say comes before what NCCL made of it
        return result.result()

    def _abort(self, result: Future[Any]) -> None:
        """Wakes a thread that is blocked in NCCL and waits until it has read its source to the end.

        One that still makes the communicator cannot be woken; it has no source.
        """
        if self._native is None or self._stream is None:
            return
        self._native.shutdown()
        deadline = time.monotonic() + _ABORT
        while not result.done() and not self._stream.ended.wait(_POLL) and time.monotonic() < deadline:
            pass

    def close(self) -> None:
        if self._native is not None:
            self._native.shutdown()


class NcclTransport:
    """A trainer rank's: rank 0 sends whole tensors, which the other ranks make with it."""

    def __init__(
        self, engines: EngineControl | None, host: str, device: torch.device, ranks: PublishingRanks
    ) -> None:
        self._engines, self._host, self._device, self._ranks = engines, host, device, ranks
        self._sender: NcclSender | None = None

    def connect(self, source: SenderParts) -> None:
        """Join the engines in a communicator. Collective. Raises RankStopped."""
        together(self._ranks, "connect", partial(self._join, source))

    def _join(self, source: SenderParts) -> None:
        for sent in source.stages()[0]:
            dtype_name(sent.dtype)
        if self._engines:
            self._engines.read_world_sizes()
            self._sender = NcclSender(self._engines, self._host, self._device)

    def begin(self) -> None:
        """Nothing: vLLM begins its session when it sends."""

    def stream(self, source: SenderParts) -> CheckedStream:
        """What rank 0 is to send. Making it communicates nothing."""
        declared = []
        if source.sender is not None:
            declared = [(sent.name, sent.dtype, sent.shape) for sent in source.stages()[0]]
        return CheckedStream(declared, source.own_part())

    def send(self, source: SenderParts, stream: CheckedStream, seconds: float) -> None:
        """Send from rank 0, which returns when engines hold every weight, checked; other ranks help make tensors.

        Raises WeightTransferError, and whatever the source raises.
        """
        if self._sender:
            self._sender.send(stream)
        else:
            stream.drain()

    def close(self) -> None:
        if self._sender:
            self._sender.close()
            self._sender = None


_POLL, _GRACE, _ABORT = 0.05, 1.0, 10.0  # seconds


def _in_thread(work: Callable[[], Any]) -> Future[Any]:
    """Run `work` in a daemon thread: one that never comes back must not keep the process from ending."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="weights-nccl", daemon=True).start()
    return result


def _on_device(device: torch.device, work: Callable[[], Any]) -> Any:
    if torch.cuda.is_available():
        torch.cuda.set_device(device if device.index is not None else torch.device("cuda", 0))
    return work()


def in_stream_order(pairs: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The same pairs for a consumer that asks from one CUDA stream and then from another, as vLLM's packing does.

    Tensors that come together (q, k and v of one Megatron parameter) are made when the first is asked for. So a
    new stream waits for the one before it, and no tensor's memory is used again before its reader is done.
    """
    before = None
    while True:
        current = torch.cuda.current_stream()
        if before is not None and current != before:
            current.wait_stream(before)
        before = current
        pair = next(pairs, None)
        if pair is None:
            return
        pair[1].record_stream(current)
        yield pair
