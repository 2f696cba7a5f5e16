"""The miniature's search service, which fails in the way that a file names while the file is there.

    EMPG_SEARCH_TOKEN=… UNRELIABLE_SEARCH_ORDER=FILE python -m tests.support.unreliable_search CORPUS --port 9000

FILE holds "500" (every answer is one), "cut" (connections end within one) or "late" (answers take two seconds).
"""

import asyncio
import os
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from megatron_empg.environments.deep_search import serving
from megatron_empg.environments.deep_search.corpus import load_corpus
from megatron_empg.environments.deep_search.retrieval import Retriever
from megatron_empg.environments.deep_search.search_service import LocalTools, application

ORDER_VARIABLE = "UNRELIABLE_SEARCH_ORDER"
LATE = 2.0
"""Seconds."""


class Unreliable:
    """An application that does as the file says. It counts in another file how many requests met with it."""

    def __init__(self, app: ASGIApp, order: Path) -> None:
        self.app, self.order = app, order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        order = self._order() if scope["type"] == "http" else ""
        if order:
            with met(self.order).open("ab") as counted:
                counted.write(b".")
        if order == "500":
            await PlainTextResponse("told to fail", status_code=500)(scope, receive, send)
            return
        if order == "cut":
            await _begin_and_leave(send)
            return
        if order == "late":
            await asyncio.sleep(LATE)
        await self.app(scope, receive, send)

    def _order(self) -> str:
        try:
            return self.order.read_text(encoding="ascii")
        except FileNotFoundError:
            return ""


async def _begin_and_leave(send: Send) -> None:
    """An answer that is not ended: uvicorn closes the connection when the application returns."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
    await send({"type": "http.response.body", "body": b'{"observation": "', "more_body": True})


def met(order: Path) -> Path:
    """The file with a byte for each request that met with an order."""
    return order.with_suffix(".met")


def main() -> None:
    def of_corpus(path: Path, token: str) -> Starlette:
        corpus = load_corpus(path)
        found = application(LocalTools(corpus, Retriever(corpus)), token)
        return Unreliable(found, Path(os.environ[ORDER_VARIABLE]))  # type: ignore[return-value]

    serving.serve(of_corpus)


if __name__ == "__main__":
    main()
