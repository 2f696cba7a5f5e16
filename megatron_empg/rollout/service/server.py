"""The driver as an HTTP service: one thing at a time, and nothing for a client that has gone.

What a driver streams goes on whatever is asked, or no longer asked, of it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from megatron_empg.common.errors import EmpgError
from megatron_empg.environments.base import Split
from megatron_empg.rollout.access import TokenMiddleware
from megatron_empg.rollout.service.evaluation import Evaluation
from megatron_empg.rollout.service.failures import DriverError
from megatron_empg.rollout.service.garbage import free_cycles, no_full_collections
from megatron_empg.rollout.service.slots import StreamAccount

logger = logging.getLogger(__name__)
R = TypeVar("R")
Endpoint = Callable[[Request], Awaitable[Response]]


class Served(Protocol):
    """What a driver does for the trainer."""

    @property
    def at_rest(self) -> bool: ...

    async def collect(self, step: int) -> bytes: ...

    async def evaluate(self, split: Split, greedy: bool) -> Evaluation: ...

    async def probe(self) -> int: ...

    async def published(self, version: int, account: StreamAccount | None) -> None: ...


class Superseded(EmpgError, RuntimeError):
    """A later request took the place of this one."""


class ClientGone(ConnectionError):
    """Nobody waits for the answer any more."""


def _nothing_plays() -> bool:
    return True


class OneAtATime:
    """Runs one piece of work; a newer one cancels it, waits for its end and takes its place.

    The trainer asks for one thing after another, so a second request means that nobody waits for the first.
    """

    def __init__(self) -> None:
        self.at_rest: Callable[[], bool] = _nothing_plays
        """Whether no episode plays while none of the work is under way."""
        self._newest: asyncio.Task[Any] | None = None
        self._at_work = asyncio.Lock()

    async def run(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """The work's result. Raises Superseded when a later call takes its place."""
        if self._newest is not None:
            self._newest.cancel()
        task = asyncio.create_task(self._alone(work))
        self._newest = task
        try:
            return await task
        except asyncio.CancelledError:
            if self._newest is task:
                raise
            raise Superseded("a later request took the place of this one") from None

    async def _alone(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        async with self._at_work:
            free_cycles(at_rest=self.at_rest())  # of the last work's episodes; this one's are not there yet
            return await work()


def application(driver: AbstractAsyncContextManager[Served], token: str) -> Starlette:
    """The driver as an ASGI application; every route wants the run's token. What fails says why, as JSON."""
    desk = OneAtATime()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with driver as opened:
            app.state.driver = opened
            desk.at_rest = partial(_at_rest, opened)
            with no_full_collections():
                yield

    async def collect(request: Request) -> Response:
        served, step = request.app.state.driver, int(request.path_params["step"])
        data = await _while_connected(request, desk.run(lambda: served.collect(step)))
        return Response(data, media_type="application/octet-stream")

    async def evaluate(request: Request) -> Response:
        served, asked = request.app.state.driver, await request.json()
        work = desk.run(lambda: served.evaluate(asked["split"], bool(asked["greedy"])))
        return JSONResponse((await _while_connected(request, work)).to_json())

    async def probe(request: Request) -> Response:
        episodes = await _while_connected(request, desk.run(request.app.state.driver.probe))
        return JSONResponse({"episodes": episodes})

    async def published(request: Request) -> Response:
        """Beside whatever is at work: the stream goes on while the trainer waits for nothing."""
        version, account = int(request.path_params["version"]), (await request.json())["account"]
        known = None if account is None else StreamAccount.from_json(account)
        await request.app.state.driver.published(version, known)
        return JSONResponse({"version": version})

    async def health(_: Request) -> Response:
        return JSONResponse({"healthy": True})

    return Starlette(
        routes=[
            Route("/rollout/{step:int}", _explained(collect), methods=["POST"]),
            Route("/evaluate", _explained(evaluate), methods=["POST"]),
            Route("/probe", _explained(probe), methods=["POST"]),
            Route("/published/{version:int}", _explained(published), methods=["POST"]),
            Route("/health", health),
        ],
        middleware=[Middleware(TokenMiddleware, token=token)],
        lifespan=lifespan,
    )


def _at_rest(served: Served) -> bool:
    return served.at_rest


def _explained(endpoint: Endpoint) -> Endpoint:
    """The same route, whose failures are answers in their own words."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (Superseded, ClientGone) as error:
            return JSONResponse({"error": str(error)}, status_code=409)
        except Exception as error:
            expected = isinstance(error, DriverError)
            logger.error("%s failed", request.url.path, exc_info=None if expected else error)
            return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status_code=500)

    return answer


async def _while_connected(request: Request, work: Coroutine[Any, Any, R]) -> R:
    """The work's result; the work is cancelled when the client goes."""
    await request.body()  # what comes after it is the client's end of the connection
    working, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("the client has gone")
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.wait((working, gone))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
