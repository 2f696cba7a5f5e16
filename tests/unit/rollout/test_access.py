import asyncio

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute

from megatron_empg.rollout.access import TOKEN_VARIABLE, TokenMiddleware, route_table, token_from_environment

TOKEN = "0123456789abcdef"


async def _hello(request):
    return PlainTextResponse("hello")


async def _socket(websocket):
    await websocket.accept()
    await websocket.close()


ROUTES = [
    Route("/open", _hello),
    WebSocketRoute("/socket", _socket),
    Mount("/inner", routes=[Route("/deep", _hello, methods=["POST"])]),
]


def call(scope):
    """What the guarded application sends for one request."""
    app = Starlette(routes=ROUTES)
    app.add_middleware(TokenMiddleware, token=TOKEN)
    sent = []

    async def receive():
        kind = "websocket.connect" if scope["type"] == "websocket" else "http.request"
        return {"type": kind, "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


def http(path, *authorization, method="GET"):
    headers = [(b"authorization", value) for value in authorization]
    scope = {"type": "http", "path": path, "method": method, "headers": headers, "query_string": b""}
    return call(scope)[0]["status"]


RIGHT = b"Bearer " + TOKEN.encode()


@pytest.mark.parametrize(
    "authorization",
    [(), (b"",), (b"Bearer",), (b"Bearer " + TOKEN[:-1].encode(),), (RIGHT + b"x",), (b"Basic x",), (RIGHT, b"x")],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
def test_anything_but_the_token_is_refused(authorization, method):
    assert http("/open", *authorization, method=method) == 401
    assert http("/nowhere", *authorization, method=method) == 401
    assert http("/empg/routes", *authorization, method=method) == 401


def test_the_token_opens():
    assert http("/open", RIGHT) == 200
    assert http("/nowhere", RIGHT) == 404
    assert http("/empg/routes", RIGHT) == 200


def test_websocket_is_refused():
    scope = {"type": "websocket", "path": "/socket", "headers": [], "query_string": b""}
    assert call(scope) == [{"type": "websocket.close", "code": 1008, "reason": "no valid token"}]
    with_response = scope | {"extensions": {"websocket.http.response": {}}}
    assert call(with_response)[0]["status"] == 401
    allowed = call(scope | {"headers": [(b"authorization", RIGHT)]})
    assert allowed[0]["type"] == "websocket.accept"


def test_route_table_reaches_into_mounts():
    table = {(row["path"], row["kind"]) for row in route_table(ROUTES)}
    assert table == {
        ("/open", "Route"),
        ("/socket", "WebSocketRoute"),
        ("/inner", "Mount"),
        ("/inner/deep", "Route"),
    }


@pytest.mark.parametrize("token", [None, "", "short"])
def test_server_does_not_start_without_a_token(monkeypatch, token):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    if token is not None:
        monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(SystemExit, match="EMPG_TOKEN must hold"):
        token_from_environment()
