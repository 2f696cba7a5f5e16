"""The trainer's side of weight transfer: new weights into running engines, through vLLM's own sessions.

Only trainer rank 0 has a `WeightPublisher`; the other trainer ranks iterate their source in step with it, because
materialising a tensor is a collective. Nothing here imports vLLM unless the engines are on NCCL.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from megatron_empg.weights.broadcast import BroadcastGroup, dtype_name, open_store
from megatron_empg.weights.engine_control import EngineControl, WeightTransferError

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
        self._pairs = iter(source)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
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
    `timeout`: seconds for any single step, also the time it takes to notice an engine that died in the middle
    of a transfer. `host`: the interface of this machine that the engines can reach.
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
        self._engines.read_world_sizes()
        kind = _NcclSender if self._device.type == "cuda" else _GlooSender
        self._sender = kind(self._engines, self._host, self._timeout)

    def publish(self, source: WeightSource, version: int) -> PublishReport:
        """Pause, send, set `version`, resume. Runs the source to its end even when it raises.

        After a failure the group is gone and engines that hold half of the weights stay paused (resumed, they
        would crash): connect and publish again, without the engine that failed, to bring them back.
        """
        if self._sender is None:
            raise RuntimeError("publish() needs a connection: call connect() first (again after a failure)")
        started = time.perf_counter()
        stream = _Stream(source)
        whole = True
        try:
            self._engines.pause()
            whole = False
            self._sender.send(stream)
            whole = True
            self._engines.set_version(str(version))
        except BaseException:
            self._disconnect()
            with contextlib.suppress(Exception):
                stream.drain()
            if whole:
                with contextlib.suppress(WeightTransferError):
                    self._engines.resume()
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


class _GlooSender:
    """The trainer's end of backend torch_pg (megatron_empg.weights.vllm_extension)."""

    def __init__(self, engines: EngineControl, host: str, timeout: float) -> None:
        self._engines = engines
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights-rpc")
        world_size = 1 + sum(engines.world_sizes)
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
    """The trainer's end of vLLM's native "nccl" backend."""

    def __init__(self, engines: EngineControl, host: str, timeout: float) -> None:
        from vllm.distributed.weight_transfer.base import ParamMeta
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        self._param_meta = ParamMeta
        self._stream: _Stream | None = None
        info = NCCLTrainerInitInfo(
            rank=0,
            master_address=host,
            master_port=get_open_port(),
            world_size=1 + sum(engines.world_sizes),
        )
        # This object is the source: vLLM keeps it, and every send() gives it a new stream.
        self._engines = engines
        source: Any = self
        self._native: Any = WeightTransferTrainerFactory.trainer_init(info, client=engines, source=source)

    def metadata(self) -> list[Any]:
        assert self._stream is not None
        return [self._param_meta(name, dtype, tuple(shape)) for name, dtype, shape in self._stream.metadata]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        assert self._stream is not None
        return iter(self._stream)

    def send(self, stream: _Stream) -> None:
        """One session, driven by vLLM."""
        self._stream = stream
        try:
            self._native.send_weights()
        except BaseException:
            self._engines.abandon_update()
            raise
        finally:
            self._stream = None

    def close(self) -> None:
        self._native.shutdown()
