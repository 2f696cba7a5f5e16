"""The trainer's side of weight transfer: new weights into running engines, through vLLM's own sessions.

Only trainer rank 0 has a `WeightPublisher`; the other trainer ranks iterate their source in step with it, because
materialising a tensor is a collective. Nothing here imports vLLM unless the engines are on NCCL.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_empg.weights.sync.broadcast import dtype_name
from megatron_empg.weights.sync.engine_control import EngineControl
from megatron_empg.weights.sync.gloo_sender import GlooSender
from megatron_empg.weights.sync.nccl_sender import NcclSender
from megatron_empg.weights.sync.source import Stream, WeightSource


@dataclass(frozen=True)
class PublishReport:
    """`seconds` from pause to resume, `bytes` sent to each engine (once), `tensors` sent."""

    seconds: float
    bytes: int
    tensors: int


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
        self._sender: GlooSender | NcclSender | None = None

    def connect(self, source: WeightSource) -> None:
        """Join the engines in a group. Raises WeightTransferError, or ValueError for a dtype not sent."""
        for _name, dtype, _shape in source.metadata():
            dtype_name(dtype)
        with self._engines.within(self._timeout):
            self._engines.read_world_sizes()
            if self._device.type == "cuda":
                self._sender = NcclSender(self._engines, self._host, self._device)
            else:
                self._sender = GlooSender(self._engines, self._host)

    def publish(self, source: WeightSource, version: int) -> PublishReport:
        """Pause, send, set `version`, resume. Runs the source to its end even when it raises.

        After a failure the group is gone and engines stay paused that hold half of the weights (resumed, they
        would crash) or new ones under the old version (what they play would say the wrong one): connect and
        publish again, without the engine that failed, to bring them back.
        """
        if self._sender is None:
            raise RuntimeError("publish() needs a connection: call connect() first (again after a failure)")
        started = time.perf_counter()
        stream = Stream(source, None if self._device.type == "cuda" else torch.device("cpu"))
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
