"""What the search servers share: a token on every route, bounded JSON, answers made in threads, a command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.options import parse_command_line
from megatron_empg.common.processes import die_with_parent
from megatron_empg.common.token_access import TokenMiddleware, token_of
from megatron_empg.environments.blocking import in_thread
from megatron_empg.environments.deep_search.service_client import TOKEN_VARIABLE
from megatron_empg.environments.deep_search.tools import QueryRefused

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

LONGEST_BODY = 4 << 20
"""Bytes of a request."""

Answer = Callable[[dict[str, Any]], Any]
"""From a request's JSON object to what is answered. It runs in a thread, and raises BadRequest or QueryRefused."""


class BadRequest(EmpgError, ValueError):
    """What is wrong with a request, and its status."""

    def __init__(self, fault: str, status: int = 400) -> None:
        super().__init__(fault)
        self.status = status


def application(answers: Mapping[str, Answer], health: Mapping[str, Any], token: str) -> Starlette:
    """An ASGI application: POST of each path, and GET /health. Every route wants the token."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def healthy(request: Request) -> Response:
        return JSONResponse({"healthy": True, **health})

    async def look_up(request: Request) -> Response:
        try:
            body = await _read(request)
            content = await in_thread(_answered, answers[request.url.path], body)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except BadRequest as error:
            return JSONResponse({"error": str(error)}, status_code=error.status)
        except QueryRefused as error:
            return JSONResponse({"error": str(error)}, status_code=422)
        return Response(content, media_type="application/json")

    posts = [Route(path, look_up, methods=["POST"]) for path in answers]
    return Starlette(
        routes=[Route("/health", healthy), *posts], middleware=[Middleware(TokenMiddleware, token=token)]
    )


def _port(given: str) -> int:
    """Raises typer.BadParameter for what is not a port."""
    number = 0
    if given.isascii() and given.isdigit() and len(given) < 6:
        number = int(given)
    if not 1 <= number <= 65535:
        raise typer.BadParameter(f"{given!r:.40} is not a port; it is a whole number from 1 to 65535")
    return number


@dataclass(frozen=True)
class ServingArguments:
    """A search server; it listens until the process that started it ends."""

    source: Annotated[
        Path, typer.Argument(help="What it searches: a corpus of facts, or what `empg index` wrote.")
    ]
    port: Annotated[int, typer.Option(parser=_port)]
    host: Annotated[str, typer.Option(help="Interface to listen on; loopback if not given.")] = "127.0.0.1"


def serve(make: Callable[[Path, str], Starlette]) -> None:
    """The command line of a server: it listens until the process that started it ends.

    `make` makes the application of what is searched and the token; where it raises ValueError or OSError the
    process ends with its text.
    """
    import uvicorn

    die_with_parent()
    arguments = parse_command_line(ServingArguments)
    token = token_of(TOKEN_VARIABLE, "the search server's")
    try:
        app = make(arguments.source, token)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", timeout_keep_alive=120)


async def _read(request: Request) -> bytes:
    """The bytes of a request. Raises BadRequest for more than are taken."""
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > LONGEST_BODY:
            raise BadRequest(f"the body is larger than {LONGEST_BODY} bytes", status=413)
    return bytes(parts)


def _answered(answer: Answer, body: bytes) -> bytes:
    """Raises BadRequest or QueryRefused."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(asked, dict):
        raise BadRequest("the body is not a JSON object")
    # In ASCII: a page may hold what is no UTF-8, as half a surrogate pair.
    return json.dumps(answer(asked)).encode("ascii")
