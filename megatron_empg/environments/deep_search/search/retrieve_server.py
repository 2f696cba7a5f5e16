"""A search server of the peers' protocol over an index, with pages by title as an extension.

    EMPG_SEARCH_TOKEN=… python -m megatron_empg.environments.deep_search.search.retrieve_server INDEX --port 8000

POST /retrieve takes {"queries": [TEXT, ...], "topk": 3, "return_scores": true}, answers {"result": [[{"document":
{"id", "contents": "Title\\nbody"}, "score"}, ...], ...]}; without scores a result is the document itself.
POST /visit takes {"title": TEXT} and answers {"result": {"document": ...}}, or null where there is no such page.
GET /health tells the number of documents. Every route wants the server's token.
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_empg.environments.blocking import in_thread
from megatron_empg.environments.deep_search.search.bm25_index import LONGEST_QUERY, MOST_RESULTS, SearchIndex
from megatron_empg.environments.deep_search.search.corpus_lines import join_contents
from megatron_empg.environments.deep_search.search.errors import SearchError
from megatron_empg.environments.deep_search.search_service import TOKEN_VARIABLE
from megatron_empg.processes import die_with_parent

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse

LONGEST_BODY = 4 << 20
MOST_QUERIES = 512
MOST_CHARACTERS = 4 << 20
"""Of the documents of one answer; what is over it is left out of the longest documents."""
DEFAULT_TOP_K = 3


class _BadRequest(ValueError):
    """What is wrong with a request, and its status."""

    def __init__(self, fault: str, status: int = 400) -> None:
        super().__init__(fault)
        self.status = status


def application(index: SearchIndex, token: str) -> Starlette:
    """The server as an ASGI application."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    expected = b"Bearer " + token.encode()

    def allowed(request: Request) -> bool:
        return hmac.compare_digest(request.headers.get("authorization", "").encode(), expected)

    async def health(request: Request) -> JSONResponse:
        if not allowed(request):
            return refusal()
        return JSONResponse({"healthy": True, "documents": len(index)})

    async def look_up(request: Request) -> JSONResponse:
        if not allowed(request):
            return refusal()
        answer = _retrieve if request.url.path == "/retrieve" else _visit
        try:
            body = await _body(request)
            return JSONResponse({"result": await in_thread(answer, index, body)})
        except _BadRequest as error:
            return JSONResponse({"error": str(error)}, status_code=error.status)

    def refusal() -> JSONResponse:
        return JSONResponse({"error": "no valid token"}, status_code=401)

    posts = [Route(path, look_up, methods=["POST"]) for path in ("/retrieve", "/visit")]
    return Starlette(routes=[Route("/health", health), *posts])


async def _body(request: Request) -> dict[str, Any]:
    """The request's JSON object. Raises _BadRequest."""
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > LONGEST_BODY:
            raise _BadRequest(f"the body is larger than {LONGEST_BODY} bytes", status=413)
    try:
        body = json.loads(parts)
    except (ValueError, RecursionError) as error:
        raise _BadRequest(f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise _BadRequest("the body is no JSON object")
    return body


def _retrieve(index: SearchIndex, body: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Raises _BadRequest."""
    queries, top_k = body.get("queries"), body.get("topk")
    top_k = DEFAULT_TOP_K if top_k is None else top_k
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise _BadRequest('"queries" is a list of texts')
    if len(queries) > MOST_QUERIES:
        raise _BadRequest(f'"queries" holds {len(queries)} queries, more than {MOST_QUERIES}', status=413)
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= MOST_RESULTS:
        raise _BadRequest(f'"topk" is a whole number from 1 to {MOST_RESULTS}')
    longest = max(map(len, queries), default=0)
    if longest > LONGEST_QUERY:
        raise _BadRequest(f"a query has {longest} characters, more than {LONGEST_QUERY}", status=413)
    share = MOST_CHARACTERS // max(1, len(queries) * top_k)
    scored = body.get("return_scores") is True
    found = []
    for query in queries:
        results = []
        for hit in index.search(query, top_k):
            document = {"id": hit.id, "contents": join_contents(hit.title, hit.text)[:share]}
            results.append({"document": document, "score": hit.score} if scored else document)
        found.append(results)
    return found


def _visit(index: SearchIndex, body: dict[str, Any]) -> dict[str, Any] | None:
    """Raises _BadRequest."""
    title = body.get("title")
    if not isinstance(title, str):
        raise _BadRequest('"title" is a text')
    if len(title) > LONGEST_QUERY:
        raise _BadRequest(f"the title has {len(title)} characters, more than {LONGEST_QUERY}", status=413)
    page = index.page(title)
    if page is None:
        return None
    return {"document": {"contents": join_contents(page.title, page.text)[:MOST_CHARACTERS]}}


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser(
        prog="python -m megatron_empg.environments.deep_search.search.retrieve_server"
    )
    parser.add_argument("index", type=Path, help="a folder that `empg index` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on (default: loopback)")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--die-with-parent", action="store_true", help="end when the process that started it ends")
    arguments = parser.parse_args()
    if arguments.die_with_parent:
        die_with_parent()
    token = os.environ.get(TOKEN_VARIABLE, "")
    if len(token) < 16:
        raise SystemExit(f"{TOKEN_VARIABLE} must hold the server's token, 16 characters or more")
    try:
        index = SearchIndex.open(arguments.index)
    except SearchError as error:
        raise SystemExit(f"error: {error}") from None
    app = application(index, token)
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", timeout_keep_alive=120)


if __name__ == "__main__":
    main()
