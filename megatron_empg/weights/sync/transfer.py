"""The trainer's side of weight transfer: new weights into running engines, through vLLM's own sessions.

Only trainer rank 0 has a `WeightPublisher`; the other trainer ranks iterate their source in step with it, because
materialising a tensor is a collective. Nothing here imports vLLM unless the engines are on NCCL.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from megatron_empg.weights.sync.broadcast import BroadcastGroup, dtype_name, open_store, rendezvous_port
from megatron_empg.weights.sync.engine_control import EngineControl, WeightTransferError

Metadata = list[tuple[str, torch.dtype, tuple[int, ...]]]


class WeightSource(Protocol):
    """Whole tensors under Hugging Face names. Every `iter()` is a fresh pass in `metadata()`'s order."""

    def metadata(self) -> Metadata: ...

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]: ...


@dataclass(frozen=True)
class PublishReport:
    """`seconds` from pause to resume, `bytes` sent to each engine (once), `tensors` sent."""

    seconds: float
    bytes: int
    tensors: int


class _Stream:
    """One checked pass over a source that can always be run to its end, so that no trainer rank waits forever."""

    def __init__(self, source: WeightSource) -> None:
        self.metadata = source.metadata()
        self.bytes = 0
        self.tensors = 0
        self.ended = threading.Event()
        """Nobody reads it any more."""
        self._pairs = iter(source)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        try:
            yield from self._checked()
        finally:
            self.ended.set()

    def _checked(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, dtype, shape in self.metadata:
            pair = next(self._pairs, None)
            if pair is None:
                raise ValueError(f"the weight source ended before {name!r}, which its metadata() declares")
            tensor = pair[1]
            if (pair[0], tensor.dtype, tuple(tensor.shape)) != (name, dtype, tuple(shape)):
                raise ValueError(
                    f"the weight source gave {pair[0]!r} {tensor.dtype} {tuple(tensor.shape)} "
                    f"where its metadata() declares {name!r} {dtype} {tuple(shape)}"
                )
            self.tensors += 1
            self.bytes += tensor.numel() * tensor.element_size()
            yield name, tensor
        surplus = next(self._pairs, None)
        if surplus is not None:
            raise ValueError(f"the weight source gave {surplus[0]!r}, which its metadata() does not declare")

    def drain(self) -> None:
        for _ in self._pairs:
            pass


class WeightPublisher:
    """Sends weights to all engines at once: one group of trainer rank 0 and every engine worker.

    `device`: the trainer's; "cpu" goes over gloo to engines with backend torch_pg, "cuda" over vLLM's nccl.
    `timeout`: seconds that one `publish`, or one `connect`, may take in all; an engine that fails ends it at once,
    one that falls silent when they are over. `host`: the interface of this machine that the engines can reach.
    """

    def __init__(
        self,
        engine_urls: Sequence[str],
        token: str,
        *,
        device: torch.device | str,
        timeout: float = 120.0,
        host: str = "127.0.0.1",
    ) -> None:
        self._device = torch.device(device)
        self._timeout = timeout
        self._host = host
        self._engines = EngineControl(engine_urls, token, timeout)
        self._sender: _GlooSender | _NcclSender | None = None

    def connect(self, source: WeightSource) -> None:
        """Join the engines in a group. Raises WeightTransferError, or ValueError for a dtype not sent."""
        for _name, dtype, _shape in source.metadata():
            dtype_name(dtype)
        with self._engines.within(self._timeout):
            self._engines.read_world_sizes()
            if self._device.type == "cuda":
                self._sender = _NcclSender(self._engines, self._host, self._device)
            else:
                self._sender = _GlooSender(self._engines, self._host)

    def publish(self, source: WeightSource, version: int) -> PublishReport:
        """Pause, send, set `version`, resume. Runs the source to its end even when it raises.

        After a failure the group is gone and engines stay paused that hold half of the weights (resumed, they
        would crash) or new ones under the old version (what they play would say the wrong one): connect and
        publish again, without the engine that failed, to bring them back.
        """
        if self._sender is None:
            raise RuntimeError("publish() needs a connection: call connect() first (again after a failure)")
        started = time.perf_counter()
        stream = _Stream(source)
        sound = True  # whole weights, under their version
        with self._engines.within(self._timeout):
            try:
                self._engines.pause()
                sound = False
                self._sender.send(stream)
                self._engines.set_version(str(version))
                sound = True
            except BaseException:
                self._disconnect()
                with contextlib.suppress(Exception):
                    stream.drain()
                if sound:
                    self._engines.resume_after_failure()
                raise
            self._engines.resume()
        return PublishReport(time.perf_counter() - started, stream.bytes, stream.tensors)

    def close(self) -> None:
        """Leave the group; the engines go on with the weights they have."""
        self._disconnect()
        self._engines.close()

    def _disconnect(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None


def update_info(metadata: Metadata) -> dict[str, Any]:
    """What /update_weights wants to know ahead of the tensors."""
    return {
        "names": [name for name, _, _ in metadata],
        "dtype_names": [dtype_name(dtype) for _, dtype, _ in metadata],
        "shapes": [list(shape) for _, _, shape in metadata],
    }


COLLECTIVE_SHARE = 0.5
"""Of the time that a publish may take, what a single broadcast may wait for an engine: so the engines' own account
of a peer that fell silent comes before their answer is no longer waited for."""


class _GlooSender:
    """The trainer's end of backend torch_pg (megatron_empg.weights.sync.vllm_extension)."""

    def __init__(self, engines: EngineControl, host: str) -> None:
        self._engines = engines
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights-rpc")
        world_size = 1 + sum(engines.world_sizes)
        timeout = engines.remaining() * COLLECTIVE_SHARE
        store = open_store(host, world_size, timeout)
        info = {
            "master_address": host,
            "master_port": store.port,
            "rank_offset": 1,
            "world_size": world_size,
            "timeout": timeout,
        }
        # Engines and trainer wait for each other, so the request must be under way while we join.
        joined = self._thread.submit(engines.init_weight_transfer_engine, info)
        try:
            self._group = BroadcastGroup(host, store, 0, world_size, timeout)
        except RuntimeError as error:
            raise _cause(joined, "connect", error) from error
        joined.result()

    def send(self, stream: _Stream) -> None:
        """One session: start, broadcast while the engines receive, finish."""
        try:
            self._engines.start_weight_update()
            received = self._thread.submit(self._engines.update_weights, update_info(stream.metadata))
            self._broadcast(stream, received)
            received.result()
            self._engines.finish_weight_update()
        except BaseException:
            self._group.close()  # wakes the engines that still wait for a tensor
            self._engines.abandon_update()
            raise

    def _broadcast(self, stream: _Stream, received: Future[None]) -> None:
        sent = self._group.stream(tensor.detach().to("cpu").contiguous() for _name, tensor in stream)
        while True:
            if received.done():
                received.result()  # an engine has refused: say so instead of waiting for it
            try:
                if next(sent, None) is None:
                    return
            except RuntimeError as error:
                self._group.close()
                raise _cause(received, "transfer", error) from error

    def close(self) -> None:
        self._group.close()
        self._thread.shutdown(wait=False, cancel_futures=True)


def _cause(reply: Future[None], phase: str, error: RuntimeError) -> Exception:
    """The engines' own account of a failed collective, if one comes soon; else the collective's error."""
    failure = None
    with contextlib.suppress(TimeoutError):
        failure = reply.exception(timeout=20.0)
    if isinstance(failure, WeightTransferError):
        return failure
    return WeightTransferError(phase, {"(engine unknown)": str(error)})


class _NcclSender:
    """The trainer's end of vLLM's native "nccl" backend.

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
        self._stream: _Stream | None = None
        self._native: Any = None
        info = NCCLTrainerInitInfo(
            rank=0,
            master_address=host,
            master_port=rendezvous_port() or get_open_port(),
            world_size=1 + sum(engines.world_sizes),
        )
        # This object is the source: vLLM keeps it, and every send() gives it a new stream.
        source: Any = self
        self._native = self._watched(
            "connect", partial(WeightTransferTrainerFactory.trainer_init, info, client=engines, source=source)
        )

    def metadata(self) -> list[Any]:
        assert self._stream is not None
        return [self._param_meta(name, dtype, tuple(shape)) for name, dtype, shape in self._stream.metadata]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        assert self._stream is not None
        return in_stream_order(iter(self._stream))

    def send(self, stream: _Stream) -> None:
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
