"""HTTP servers in the place of vLLM's: one that only answers, and one that joins senders' groups and receives."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from megatron_empg.weights.sync.broadcast import Broadcast, BroadcastGroup
from megatron_empg.weights.sync.receiver import AnnouncedTensors, Receiver, SenderAddresses
from megatron_empg.weights.sync.waiting import Refused, nobody_refused


class Engine:
    """Answers vLLM's routes; `refuses`: route to status, `slow`: route to seconds, once."""

    def __init__(self) -> None:
        self.refuses: dict[str, int] = {}
        self.slow: dict[str, float] = {}
        self.dies_at = ""
        self.asked: list[str] = []
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply({})

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}"))

            def reply(self, asked: dict[str, Any]) -> None:
                route = self.path.strip("/").partition("?")[0]
                engine.asked.append(route)
                if route == engine.dies_at:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                engine.over.wait(engine.slow.pop(route, 0.0))
                status, body = engine.refuses.get(route, 200), b'{"world_size": 1}'
                try:
                    if status == 200:
                        engine.work(route, asked)
                except Exception as error:
                    status, body = 500, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
                with suppress(OSError):  # who asked has given up
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.over = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def work(self, route: str, asked: dict[str, Any]) -> None:
        """What it does before it answers; an exception is answered with status 500."""

    def stop(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


class ReceivingEngine(Engine):
    """Receives as an engine's one worker does, over gloo, into `weights`; one call at a time."""

    def __init__(self, serves: torch.dtype = torch.float32) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.arrived: list[str] = []
        self.paused, self.version = False, "0"
        self.on_arrival: Callable[[int, torch.Tensor], None] = lambda _number, _tensor: None
        """Given each tensor before it is summed up, with its number in the session."""
        self._receiver, self._busy, self._active = Receiver(0, serves), threading.Lock(), False
        super().__init__()

    def work(self, route: str, asked: dict[str, Any]) -> None:
        if route in ("pause", "resume"):
            self.paused = route == "pause"
        with self._busy:
            if route == "init_weight_transfer_engine":
                self._receiver.join(SenderAddresses(**asked["init_info"]))
                self._receiver._groups = [Tapped(group, self) for group in self._receiver._groups]
            elif route == "start_weight_update":
                assert not self._active, "start_weight_update called while a weight update is already active"
                self._active = True
            elif route == "update_weights":
                self._update(asked["update_info"])
            elif route == "finish_weight_update":
                assert self._active
                self._active = False
            elif route == "update_weight_version":
                self.version = asked["new_version"]

    def leave(self) -> None:
        """Drop its connections to the senders, as a process that dies does."""
        self._receiver.close()

    def _update(self, info: dict[str, Any]) -> None:
        assert self._active, "start_weight_update must be called before update_weights"
        try:
            assert info, "the trainer abandoned this weight update"
            self.arrived = []
            for name, tensor in self._receiver.weights(AnnouncedTensors(**info)):
                self.arrived.append(name)
                self.weights[name] = tensor.clone()
        except BaseException:
            self._active = False
            self._receiver.close()
            raise


class Tapped(BroadcastGroup):
    """A group of which the engine's `on_arrival` is given every tensor."""

    def __init__(self, group: BroadcastGroup, engine: ReceivingEngine) -> None:
        self._tapped, self._engine = group, engine

    def start(self, tensor: torch.Tensor) -> Broadcast:
        begun, engine = self._tapped.start(tensor), self._engine

        class Arriving(Broadcast):
            def wait(self, refused: Refused = nobody_refused) -> torch.Tensor:
                arrived = super().wait(refused)
                engine.on_arrival(len(engine.arrived), arrived)
                return arrived

        return Arriving(begun.tensor, begun.work, begun.limit)

    def close(self) -> None:
        self._tapped.close()


class Source:
    def metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return [(f"w{i}", torch.float32, (2,)) for i in range(4)]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.readers = []
        for i in range(4):
            self.readers.append(threading.current_thread().name)
            yield f"w{i}", torch.full((2,), float(i))
