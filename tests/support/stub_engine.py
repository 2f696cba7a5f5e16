"""A server that answers as an engine does, in a thread of its own, and fails in the ways that engines do.

For what a real engine cannot be made to do in time: freeze, come late, say nothing of its weights.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiohttp import web

Reply = Callable[[dict[str, Any]], list[int]]


@dataclass
class StubEngine:
    """Use as `with StubEngine(reply) as engine`. `reply`: from a request's body to the tokens that it samples.

    `delay`: seconds before an answer. `frozen`: no generation is answered, while questions of health are. `gone`:
    as one that was killed, it breaks off whatever it is asked. `version`: of its weights, "default" where nobody
    told it of any.
    """

    reply: Reply
    delay: float = 0.0
    frozen: bool = False
    gone: bool = False
    version: str | None = "0"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    cancelled: int = 0
    url: str = ""

    @property
    def seeds(self) -> list[int]:
        """Of every request, as they came."""
        return [body["sampling_params"]["seed"] for body in self.bodies]

    def __enter__(self) -> StubEngine:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.add_routes(
            [
                web.post("/inference/v1/generate", self._generate),
                web.get("/health", self._health),
                web.get("/weight_info", self._weight_info),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _health(self, request: web.Request) -> web.Response:
        self._break_off_if_gone(request)
        return web.Response()

    async def _weight_info(self, request: web.Request) -> web.Response:
        self._break_off_if_gone(request)
        return web.json_response({"weight_version": self.version})

    def _break_off_if_gone(self, request: web.Request) -> None:
        if self.gone:
            assert request.transport is not None
            request.transport.abort()
            raise ConnectionAbortedError

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.in_flight += 1
        try:
            self._break_off_if_gone(request)
            await asyncio.sleep(self.delay_of(body))
            self._break_off_if_gone(request)
            return web.json_response(self._answer(body))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1

    def delay_of(self, body: dict[str, Any]) -> float:
        """Seconds before a request's answer."""
        return 3600.0 if self.frozen else self.delay

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        parameters = body["sampling_params"]
        tokens = self.reply(body)[: parameters["max_tokens"]]
        stopped = tokens[-1] in parameters["stop_token_ids"]
        versions = None if self.version is None else [{"version": self.version, "start": 0, "end": len(tokens)}]
        entries = [{"token_id": token, "logprob": -1.0} for token in tokens]
        choice = {
            "token_ids": tokens,
            "finish_reason": "stop" if stopped else "length",
            "logprobs": {"content": entries},
            "weight_versions": versions,
        }
        return {"choices": [choice]}
