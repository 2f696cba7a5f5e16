"""The Deep Search tools as a service, so that a corpus lies in one place and not in every process that plays.

    EMPG_SEARCH_TOKEN=… python -m megatron_empg.environments.deep_search.search_service CORPUS --port 9000

POST /search and /visit take {"argument": TEXT} and answer {"observation": TEXT}; GET /health. Every route wants
the service's token, which is not the run's: a service may be another's.
"""

from __future__ import annotations

import argparse
import hmac
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_empg.environments.deep_search.corpus import Corpus, load_corpus
from megatron_empg.environments.deep_search.retrieval import Retriever
from megatron_empg.environments.deep_search.text import normalise_title
from megatron_empg.environments.deep_search.tools import BlockingTools, QueryRefused, SearchServiceError
from megatron_empg.processes import die_with_parent

if TYPE_CHECKING:
    import httpx
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse

TOKEN_VARIABLE = "EMPG_SEARCH_TOKEN"
ATTEMPTS = 3
REFUSALS = (400, 413, 414, 422)
"""Statuses that say that the query itself is at fault. Others of 400 to 499 speak of token, address or load."""


class LocalTools:
    """Over a corpus of this process: the best page's first sentence and the second page's title; a whole page."""

    def __init__(self, corpus: Corpus, retriever: Retriever) -> None:
        self._corpus = corpus
        self._retriever = retriever

    def search(self, query: str) -> str:
        found = self._retriever.search(query)
        if not found:
            return "no results"
        observation = f"found {found[0].title} : {found[0].sentences[0]}"
        return observation + (f" also {found[1].title}" if len(found) > 1 else "")

    def visit(self, title: str) -> str:
        document = self._corpus.by_title.get(normalise_title(title))
        return f"page : {document.text}" if document else "no page"


class RemoteTools:
    """The same from a service at `url`, its token in the environment. Many threads may use it at once.

    `timeout`: seconds of one attempt. `within`: seconds that all attempts and the pauses between them have.
    """

    def __init__(self, url: str, *, timeout: float = 60.0, within: float | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"search_url is {url!r}; it starts with http:// or https://")
        self.url = url.rstrip("/")
        self._timeout = timeout if within is None else min(timeout, within / (ATTEMPTS + 1))
        self._pause = 1.0 if within is None else min(1.0, within / 20)
        self._client: httpx.Client | None = None

    def search(self, query: str) -> str:
        return self._ask("search", query)

    def visit(self, title: str) -> str:
        return self._ask("visit", title)

    def _ask(self, tool: str, argument: str) -> str:
        """Raises QueryRefused, or SearchServiceError after `ATTEMPTS` failures."""
        import httpx

        if self._client is None:
            headers = {"Authorization": f"Bearer {os.environ.get(TOKEN_VARIABLE, '')}"}
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            self._client = httpx.Client(headers=headers, timeout=self._timeout, limits=limits, trust_env=False)
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(attempt * self._pause)
            try:
                answer = self._client.post(f"{self.url}/{tool}", json={"argument": argument})
                if answer.status_code in REFUSALS:
                    raise QueryRefused(f"the {tool} was refused")
                answer.raise_for_status()
                return str(answer.json()["observation"])
            except QueryRefused:
                raise
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                failure = f"{type(error).__name__}: {error}"
        raise SearchServiceError(f"the search service at {self.url}/{tool} failed {ATTEMPTS} times: {failure}")


def application(tools: BlockingTools, token: str) -> Starlette:
    """The service as an ASGI application."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    expected = b"Bearer " + token.encode()

    def allowed(request: Request) -> bool:
        return hmac.compare_digest(request.headers.get("authorization", "").encode(), expected)

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"healthy": True}) if allowed(request) else refusal()

    async def look_up(request: Request) -> JSONResponse:
        if not allowed(request):
            return refusal()
        try:
            argument = (await request.json())["argument"]
        except (ValueError, KeyError, TypeError):
            argument = None
        if not isinstance(argument, str):
            return JSONResponse({"error": 'the body is {"argument": TEXT}'}, status_code=400)
        tool = tools.search if request.url.path == "/search" else tools.visit
        return JSONResponse({"observation": tool(argument)})

    def refusal() -> JSONResponse:
        return JSONResponse({"error": "no valid token"}, status_code=401)

    posts = [Route(path, look_up, methods=["POST"]) for path in ("/search", "/visit")]
    return Starlette(routes=[Route("/health", health), *posts])


def main() -> None:
    import uvicorn

    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m megatron_empg.environments.deep_search.search_service")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on (default: loopback)")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    token = os.environ.get(TOKEN_VARIABLE, "")
    if len(token) < 16:
        raise SystemExit(f"{TOKEN_VARIABLE} must hold the service's token, 16 characters or more")
    corpus = load_corpus(arguments.corpus)
    app = application(LocalTools(corpus, Retriever(corpus)), token)
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", timeout_keep_alive=120)


if __name__ == "__main__":
    main()
