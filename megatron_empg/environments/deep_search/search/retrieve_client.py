"""The client of the peers' search servers: POST /retrieve, and POST /visit where a server has it.

A request is {"queries": [...], "topk": 3, "return_scores": true}. The answer is a list per query: {"result":
[[{"document": {"contents": "Title\\nbody"}, "score": 1.0}, ...], ...]}. Documents without a score, and those
of "title" and "text", are understood too. The token of `EMPG_SEARCH_TOKEN` is sent where it is set.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_empg.environments.deep_search.search import observations
from megatron_empg.environments.deep_search.search.bm25_index import Hit
from megatron_empg.environments.deep_search.search.corpus_lines import read_passage
from megatron_empg.environments.deep_search.search.index_tools import refuse_long
from megatron_empg.environments.deep_search.search.observations import Shown
from megatron_empg.environments.deep_search.search.passages import Page
from megatron_empg.environments.deep_search.search_service import REFUSALS, TOKEN_VARIABLE
from megatron_empg.environments.deep_search.text import normalise_title
from megatron_empg.environments.deep_search.tools import QueryRefused, SearchServiceError

if TYPE_CHECKING:
    import httpx

RETRIED = (408, 429, 500, 502, 503, 504)
"""Statuses that may pass."""
NO_SUCH_ROUTE = (404, 405, 501)
ATTEMPTS = 3
LOOKED_THROUGH = 10
"""Documents among which the page of a title is looked for, where a server cannot be asked for it."""


@dataclass(frozen=True)
class ClientLimits:
    """`within`: seconds of all attempts and the pauses between them; `attempt`: of one attempt at most, from the
    connection to the last byte; `answer_bytes`: of one answer."""

    within: float = 60.0
    attempt: float = 20.0
    answer_bytes: int = 16 << 20


class _Passing(Exception):
    """A failure that another attempt may mend."""


class _NoSuchRoute(Exception):
    """The server does not know the path."""


class RetrieveClient:
    """Asks a server at `url`, which may end in /retrieve. For any number of coroutines at once."""

    def __init__(self, url: str, limits: ClientLimits | None = None) -> None:
        """Raises ValueError for what is no URL of a server."""
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"search_url is {url!r}; it starts with http:// or https://")
        self.url = url.rstrip("/").removesuffix("/retrieve").rstrip("/")
        self.limits = limits or ClientLimits()
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._can_visit = True

    async def retrieve(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """The best documents of each query. Raises QueryRefused, or SearchServiceError naming the URL."""
        asked = {"queries": list(queries), "topk": top_k, "return_scores": True}
        try:
            answer = await self._post("retrieve", asked)
        except _NoSuchRoute as error:
            raise self._failed("retrieve", f"{error}; is this the address of a search server?") from None
        try:
            return [_hits(found, top_k) for found in _lists(answer, len(queries))]
        except ValueError as error:
            raise self._failed("retrieve", f"the answer is malformed: {error}") from None

    async def visit(self, title: str) -> Page | None:
        """The page of a title. Of a server without /visit, the document of exactly this title that a search for
        it finds. Raises as `retrieve` does."""
        if self._can_visit:
            try:
                return self._page(await self._post("visit", {"title": title}))
            except _NoSuchRoute:
                self._can_visit = False
        wanted = normalise_title(title)
        for hit in (await self.retrieve([title], LOOKED_THROUGH))[0]:
            if normalise_title(hit.title) == wanted:
                return Page(hit.title, hit.text)
        return None

    async def close(self) -> None:
        """Close the connections. The next request opens others."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()

    def _page(self, answer: Any) -> Page | None:
        try:
            found = answer["result"]
            if found is None:
                return None
            passage = read_passage(found["document"], "")
        except (KeyError, TypeError, ValueError) as error:
            raise self._failed("visit", f"the answer is malformed: {error!r:.300}") from None
        return Page(passage.title, passage.text)

    async def _post(self, route: str, asked: dict[str, Any]) -> Any:
        """The JSON of an answer, after as many attempts as the time allows."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.limits.within
        failure = ""
        for attempt in range(1, ATTEMPTS + 1):
            left = end - loop.time()
            # What is left is shared by the attempts to come, so that a server that hangs is asked again.
            seconds = min(self.limits.attempt, left / (ATTEMPTS + 1 - attempt))
            try:
                async with asyncio.timeout(seconds):
                    return await self._attempt(route, asked)
            except TimeoutError:
                failure = f"no whole answer within {seconds:.3g} s"
            except _Passing as error:
                failure = str(error)
            if attempt < ATTEMPTS:
                await asyncio.sleep(min(1.0, self.limits.within / 20) * attempt)
        raise self._failed(route, f"{ATTEMPTS} attempts failed, the last one: {failure}")

    async def _attempt(self, route: str, asked: dict[str, Any]) -> Any:
        import httpx

        try:
            # In ASCII: half a surrogate pair, which a policy can write, is no UTF-8.
            content = json.dumps(asked).encode("ascii")
            async with self._connected().stream("POST", f"{self.url}/{route}", content=content) as answer:
                if answer.status_code != 200:
                    self._judge_status(route, answer.status_code)
                body = await self._body(route, answer)
        except httpx.HTTPError as error:
            raise _Passing(f"{type(error).__name__}: {error}") from None
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise self._failed(route, f"the answer is no JSON ({error}): {body[:100]!r}") from None

    def _judge_status(self, route: str, status: int) -> None:
        """Raises what an answer of a status other than 200 is."""
        if status in RETRIED:
            raise _Passing(f"status {status}")
        if status in NO_SUCH_ROUTE:
            raise _NoSuchRoute(f"status {status}")
        if status in REFUSALS:
            raise QueryRefused(f"the {'search' if route == 'retrieve' else route} was refused")
        if status in (401, 403):
            raise self._failed(route, f"status {status}: {TOKEN_VARIABLE} must hold the server's token")
        raise self._failed(route, f"status {status}")

    async def _body(self, route: str, answer: httpx.Response) -> bytes:
        """The bytes of an answer; those that pass the limit are not read."""
        encoding = answer.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise self._failed(route, f"the answer is compressed ({encoding:.20}), which was not asked for")
        parts = bytearray()
        async for part in answer.aiter_raw(1 << 16):
            parts += part
            if len(parts) > self.limits.answer_bytes:
                raise self._failed(route, f"the answer is larger than {self.limits.answer_bytes} bytes")
        return bytes(parts)

    def _connected(self) -> httpx.AsyncClient:
        """The client of the running event loop: connections belong to the loop that opened them."""
        import httpx

        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
            token = os.environ.get(TOKEN_VARIABLE, "")
            if token:
                headers["Authorization"] = f"Bearer {token}"
            pool = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            # Time limits are those of `_post`, for an attempt as a whole.
            self._client = httpx.AsyncClient(headers=headers, timeout=None, limits=pool, trust_env=False)
            self._loop = loop
        return self._client

    def _failed(self, route: str, fault: str) -> SearchServiceError:
        return SearchServiceError(f"the search server at {self.url}/{route}: {fault}")


class RetrieveTools:
    """`Tools` over a search server."""

    def __init__(self, client: RetrieveClient, shown: Shown | None = None) -> None:
        self._client = client
        self._shown = shown or Shown()

    async def search(self, query: str) -> str:
        refuse_long("search", query)
        found = await self._client.retrieve([query], self._shown.top_k)
        return observations.results(found[0], query, self._shown)

    async def visit(self, title: str) -> str:
        refuse_long("visit", title)
        return observations.page(await self._client.visit(title), self._shown)


def _lists(answer: Any, queries: int) -> list[list[Any]]:
    """The list of each query. Raises ValueError."""
    found = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise ValueError(f'it has no list "result": {answer!r:.100}')
    if len(found) != queries:
        raise ValueError(f'"result" has {len(found)} lists for {queries} queries')
    for documents in found:
        if not isinstance(documents, list):
            raise ValueError(f"a query's result is {documents!r:.100}, not a list")
    return found


def _hits(found: list[Any], most: int) -> list[Hit]:
    """Raises ValueError."""
    hits = []
    for item in found[:most]:
        scored = isinstance(item, dict) and "document" in item
        passage = read_passage(item["document"] if scored else item, "")
        score = item.get("score", 0.0) if scored else 0.0
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise ValueError(f'"score" is {score!r:.40}, not a number')
        hits.append(Hit(passage.title, passage.text, float(score), passage.id))
    return hits
