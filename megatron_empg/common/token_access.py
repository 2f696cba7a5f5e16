"""A token on every route of an HTTP server: read from the environment, compared, and refused where it is wrong."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

ROUTES_PATH = "/empg/routes"
SHORTEST_TOKEN = 16
RUN_TOKEN = "EMPG_TOKEN"
"""The variable with the token of a run, which its engines and its driver ask for."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def token_of(variable: str, whose: str) -> str:
    """The token that a variable holds. Raises SystemExit when it is missing or shorter than 16 characters.

    `whose` says of whom: "the run's".
    """
    token = os.environ.get(variable, "")
    if len(token) < SHORTEST_TOKEN:
        given = "it is not set"
        if token:
            given = f"it has {len(token)} characters"
        raise SystemExit(
            f"{variable} must hold {whose} token, {SHORTEST_TOKEN} characters or more ({given}). "
            f'Set it, for example: export {variable}="$(openssl rand -hex 24)"'
        )
    return token


class TokenMiddleware:
    """ASGI middleware: answers 401 to every request and websocket without `Authorization: Bearer <token>`.

    It also answers GET /empg/routes (with the token) with the application's own route table, which is how tests
    know that no route was forgotten.
    """

    def __init__(self, app: Application, token: str) -> None:
        self.app = app
        self._expected = b"Bearer " + token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif not self._is_allowed(scope.get("headers", ())):
            await _refuse(scope, send)
        elif scope["type"] == "http" and scope["path"] == ROUTES_PATH:
            await _answer(send, 200, route_table(scope["app"].routes))
        else:
            await self.app(scope, receive, send)

    def _is_allowed(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        given = [value for name, value in headers if name.lower() == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)


def route_table(routes: Iterable[Any], prefix: str = "") -> list[dict[str, Any]]:
    """Every route as {"path", "methods", "kind"}; mounted applications with the routes inside them."""
    table: list[dict[str, Any]] = []
    for route in routes:
        path = prefix + getattr(route, "path", "")
        methods = sorted(getattr(route, "methods", None) or ())
        table.append({"path": path, "methods": methods, "kind": type(route).__name__})
        table += route_table(getattr(route, "routes", None) or (), path)
    return table


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": "no valid token"})
        return
    await _answer(send, 401, {"error": "no valid token"}, prefix=scope["type"] + ".")


async def _answer(send: Send, status: int, body: Any, prefix: str = "http.") -> None:
    if prefix == "websocket.":
        prefix = "websocket.http."
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": prefix + "response.start", "status": status, "headers": headers})
    await send({"type": prefix + "response.body", "body": content})
