"""The trainer's end of backend torch_pg: tensors from CPU memory by gloo."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from megatron_empg.common.dtypes import name_of
from megatron_empg.weights.sync.broadcast import BroadcastGroup, open_store
from megatron_empg.weights.sync.engine_control import EngineControl, WeightTransferError
from megatron_empg.weights.sync.source import Metadata, Stream


def update_info(metadata: Metadata) -> dict[str, Any]:
    """What /update_weights wants to know ahead of the tensors."""
    return {
        "names": [name for name, _, _ in metadata],
        "dtype_names": [name_of(dtype) for _, dtype, _ in metadata],
        "shapes": [list(shape) for _, _, shape in metadata],
    }


COLLECTIVE_SHARE = 0.5
"""Of the time that a publish may take, what a single broadcast may wait for an engine: so the engines' own account
of a peer that fell silent comes before their answer is no longer waited for."""


class GlooSender:
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

    def send(self, stream: Stream) -> None:
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

    def _broadcast(self, stream: Stream, received: Future[None]) -> None:
        sent = self._group.stream(tensor for _name, tensor in stream)
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
