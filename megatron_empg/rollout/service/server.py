"""The driver as an HTTP service: one thing at a time, and nothing for a client that has gone.

What a driver streams goes on whatever is asked, or no longer asked, of it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
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
from megatron_empg.rollout.service.added_engines import UnusableRequest, added_engines
from megatron_empg.rollout.service.evaluation import Evaluation
from megatron_empg.rollout.service.failures import RolloutServiceError, Untold
from megatron_empg.rollout.service.garbage import free_cycles, no_full_collections
from megatron_empg.rollout.service.slots import StreamAccount
from megatron_empg.rollout.service.stale_engines import PASSES, UNTOLD, WANTS_WEIGHTS, StaleEngines, TrainerNews

logger = logging.getLogger(__name__)
R = TypeVar("R")
Endpoint = Callable[[Request], Awaitable[Response]]


class ServedRollouts(Protocol):
    """What a driver does for the trainer."""

    @property
    def at_rest(self) -> bool: ...

    async def collect(self, step: int) -> bytes: ...

    async def evaluate(self, split: Split, greedy: bool) -> Evaluation: ...

    async def probe(self) -> int: ...

    async def published(self, version: int, account: StreamAccount | None) -> None: ...

    async def hold(self, urls: Sequence[str], version: int) -> None: ...

    async def add(self, urls: Sequence[str]) -> None: ...

    async def wanting(self) -> StaleEngines: ...

    @property
    def knows_weights(self) -> bool: ...


class RequestSuperseded(EmpgError, RuntimeError):
    """A later request took the place of this one."""


class ClientGone(ConnectionError):
    """Nobody waits for the answer any more."""


def _nothing_plays() -> bool:
    return True


class OneAtATime:
    """Runs one piece of work; a newer one cancels it, waits for its end and takes its place.

    The trainer asks for one thing after another, so a second request means that nobody waits for the first; but
    for work that was left, which goes on when the same is asked for again.
    """

    def __init__(self) -> None:
        self.at_rest: Callable[[], bool] = _nothing_plays
        """Whether no episode plays while none of the work is under way."""
        self._newest: asyncio.Task[Any] | None = None
        self._left = ""
        """The name of the newest work, if it goes on though nobody waits for it."""
        self._at_work = asyncio.Lock()

    async def run(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """The work's result. Raises RequestSuperseded when a later call takes its place."""
        return await self.result(self.begin("", work))

    def begin(self, name: str, work: Callable[[], Coroutine[Any, Any, R]]) -> "asyncio.Task[R]":
        """The work under way, begun now unless it was left under this name."""
        if self._newest is not None:
            if name and self._left == name:
                self._left = ""
                return self._newest
            self._newest.cancel()
        self._newest, self._left = asyncio.create_task(self._alone(work)), ""
        return self._newest

    def leave(self, name: str) -> None:
        """Nobody waits for the newest work now, and somebody will ask for it again by its name."""
        self._left = name

    async def result(self, task: "asyncio.Task[R]") -> R:
        """What the work has come to. Raises RequestSuperseded when a later one took its place."""
        try:
            return await task
        except asyncio.CancelledError:
            if self._newest is task:
                raise
            raise RequestSuperseded("a later request took the place of this one") from None

    async def _alone(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        async with self._at_work:
            free_cycles(at_rest=self.at_rest())  # of the last work's episodes; this one's are not there yet
            return await work()


def application(driver: AbstractAsyncContextManager[ServedRollouts], token: str) -> Starlette:
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
        data = await _worked(request, desk, f"step {step}", lambda: served.collect(step))
        if isinstance(data, StaleEngines):
            return _wanted(data)
        return Response(data, media_type="application/octet-stream")

    async def evaluate(request: Request) -> Response:
        served, asked = request.app.state.driver, await request.json()
        split, greedy = asked["split"], bool(asked["greedy"])
        name = f"evaluation of {split}, greedy {greedy}"
        measured = await _worked(request, desk, name, lambda: served.evaluate(split, greedy))
        return _wanted(measured) if isinstance(measured, StaleEngines) else JSONResponse(measured.to_json())

    async def probe(request: Request) -> Response:
        episodes = await _worked(request, desk, "probe", request.app.state.driver.probe)
        return _wanted(episodes) if isinstance(episodes, StaleEngines) else JSONResponse({"episodes": episodes})

    async def health(_: Request) -> Response:
        return JSONResponse({"healthy": True})

    routes = [
        Route("/rollout/{step:int}", _explained(collect), methods=["POST"]),
        Route("/evaluate", _explained(evaluate), methods=["POST"]),
        Route("/probe", _explained(probe), methods=["POST"]),
        Route("/health", health),
    ]
    routes += _routes_of_news()
    guard = Middleware(TokenMiddleware, token=token)
    return Starlette(routes=routes, middleware=[guard], lifespan=lifespan)


def _routes_of_news() -> list[Route]:
    """What a driver is told, beside whatever is at work: which engines there are, and which weights they hold."""

    async def hold(request: Request) -> Response:
        """Which engines hold which weights."""
        version, urls = int(request.path_params["version"]), (await request.json())["engines"]
        await request.app.state.driver.hold(urls, version)
        return JSONResponse({"version": version})

    async def published(request: Request) -> Response:
        """The stream goes on under these weights."""
        version, account = int(request.path_params["version"]), (await request.json())["account"]
        known = None if account is None else StreamAccount.from_json(account)
        await request.app.state.driver.published(version, known)
        return JSONResponse({"version": version})

    async def add(request: Request) -> Response:
        """Engines that come while the run goes on."""
        urls = added_engines(await _json_of(request))
        await request.app.state.driver.add(urls)
        return JSONResponse({"engines": urls})

    return [
        Route("/published/{version:int}", _explained(published), methods=["POST"]),
        Route("/engines", _explained(add), methods=["POST"]),
        Route("/engines/{version:int}", _explained(hold), methods=["POST"]),
    ]


async def _json_of(request: Request) -> object:
    """The body. Raises UnusableRequest for what is no JSON."""
    try:
        return await request.json()
    except ValueError as error:
        raise UnusableRequest(f"the body is not JSON: {error}") from None


def _at_rest(served: ServedRollouts) -> bool:
    return served.at_rest


def _explained(endpoint: Endpoint) -> Endpoint:
    """The same route, whose failures are answers in their own words."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (RequestSuperseded, ClientGone) as error:
            return JSONResponse({"error": str(error)}, status_code=409)
        except UnusableRequest as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        except Untold as error:
            said = {"error": str(error), "missing": error.missing.value}
            return JSONResponse(said, status_code=UNTOLD)
        except Exception as error:
            expected = isinstance(error, RolloutServiceError)
            logger.error("%s failed", request.url.path, exc_info=None if expected else error)
            passes = isinstance(error, RolloutServiceError) and error.accident
            said = {"error": f"{type(error).__name__}: {error}"}
            return JSONResponse(said, status_code=PASSES if passes else 500)

    return answer


def _wanted(stale: StaleEngines) -> Response:
    return JSONResponse(stale.to_json(), status_code=WANTS_WEIGHTS)


async def _worked(
    request: Request, desk: OneAtATime, name: str, work: Callable[[], Coroutine[Any, Any, R]]
) -> R | StaleEngines:
    """The work's result, or engines that want weights, while the work goes on until it is asked for again. It is
    cancelled when the client goes. Raises Untold before anything is played.
    """
    served: ServedRollouts = request.app.state.driver
    if not served.knows_weights:
        told = "it has not been told yet which engines hold the policy's weights: this service was started again"
        raise Untold(TrainerNews.ENGINES, told)
    await request.body()  # what comes after it is the client's end of the connection
    working = desk.begin(name, work)
    gone = asyncio.create_task(_disconnected(request))
    wanting = asyncio.create_task(served.wanting())
    left = False
    try:
        await asyncio.wait((working, gone, wanting), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await desk.result(working)
        if gone.done():
            raise ClientGone("the client has gone")
        stale = wanting.result()
        desk.leave(name)
        left = True
        return stale
    finally:
        ending = [gone, wanting] if left else [working, gone, wanting]
        for task in ending:
            task.cancel()
        await asyncio.wait(ending)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
