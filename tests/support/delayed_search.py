"""A search server of the /retrieve protocol that takes its time, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from megatron_empg.environments.deep_search.search.bm25_index import SearchIndex
from megatron_empg.environments.deep_search.search.retrieve_server import application


def _delayed(app: ASGIApp, seconds: float) -> ASGIApp:
    async def later(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(seconds)
        await app(scope, receive, send)

    return later


@contextmanager
def delayed_server(index: Path, token: str, seconds: float) -> Iterator[str]:
    """The URL of a server over an index that waits so long before each answer."""
    app = _delayed(application(SearchIndex.open(index), token), seconds)
    config = uvicorn.Config(app, log_level="warning", lifespan="off", backlog=1024)
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1024)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
