"""The client of the peers' search servers: POST /retrieve, and POST /visit where a server has it.

A request is {"queries": [...], "topk": 3, "return_scores": true}. The answer is a list per query: {"result":
[[{"document": {"contents": "Title\\nbody"}, "score": 1.0}, ...], ...]}. Documents without a score, and those
of "title" and "text", are understood too.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from megatron_empg.environments.blocking import in_thread
from megatron_empg.environments.deep_search.search import observations
from megatron_empg.environments.deep_search.search.bm25_index import Hit
from megatron_empg.environments.deep_search.search.corpus_lines import read_passage
from megatron_empg.environments.deep_search.search.index_tools import refuse_long
from megatron_empg.environments.deep_search.search.observations import ResultLimits
from megatron_empg.environments.deep_search.search.passages import TitlePage
from megatron_empg.environments.deep_search.service_client import ClientLimits, NoSuchRoute, ServiceClient
from megatron_empg.environments.deep_search.text import normalise_title

LOOKED_THROUGH = 10
"""Documents among which the page of a title is looked for, where a server cannot be asked for it."""

VISIT_AGAIN = 60.0
"""Seconds after which a server that did not know /visit is asked for it again."""
_MOST_SCORE = sys.float_info.max

logger = logging.getLogger(__name__)


class RetrieveClient:
    """Asks a server at `url`, which may end in /retrieve. For any number of coroutines at once."""

    def __init__(self, url: str, limits: ClientLimits | None = None) -> None:
        """Raises ValueError for what is no URL of a server."""
        self._service = ServiceClient(url.rstrip("/").removesuffix("/retrieve"), limits)
        self._has_visited = False
        self._visits_from = 0.0  # on the monotonic clock

    async def retrieve(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """The best documents of each query. Raises QueryRefused, or SearchServiceError naming the URL."""
        asked = {"queries": list(queries), "topk": top_k, "return_scores": True}
        read = partial(_hits_of_each, queries=len(queries), most=top_k)
        return await self._service.ask("retrieve", asked, read, tool="search")

    async def visit(self, title: str) -> TitlePage | None:
        """The page of a title. Of a server without /visit, the document of exactly this title that a search for
        it finds; it is asked for /visit again every `VISIT_AGAIN` seconds. Raises as `retrieve` does, also where
        a server that has answered visits does not know them any more: its pages would be other ones."""
        if time.monotonic() >= self._visits_from:
            try:
                page = await self._service.ask("visit", {"title": title}, _page)
                self._has_visited = True
                return page
            except NoSuchRoute as error:
                if self._has_visited:
                    raise
                self._postpone_visits(error)
        wanted = normalise_title(title)
        for hit in (await self.retrieve([title], LOOKED_THROUGH))[0]:
            if normalise_title(hit.title) == wanted:
                return TitlePage(hit.title, hit.text)
        return None

    def _postpone_visits(self, error: NoSuchRoute) -> None:
        if self._visits_from == 0.0:
            logger.warning(
                "%s Pages are looked for by searching for their titles; it is asked for /visit every %g s",
                error,
                VISIT_AGAIN,
            )
        self._visits_from = time.monotonic() + VISIT_AGAIN

    async def close(self) -> None:
        """Close the connections. The next request opens others."""
        await self._service.close()


class RetrieveTools:
    """`Tools` over a search server."""

    def __init__(self, client: RetrieveClient, shown: ResultLimits | None = None) -> None:
        self._client = client
        self._shown = shown or ResultLimits()

    async def search(self, query: str) -> str:
        refuse_long("search", query)
        found = await self._client.retrieve([query], self._shown.top_k)
        return await in_thread(observations.results, found[0], query, self._shown)

    async def visit(self, title: str) -> str:
        refuse_long("visit", title)
        return observations.page(await self._client.visit(title))

    async def close(self) -> None:
        await self._client.close()


def _page(answer: Any) -> TitlePage | None:
    """Raises ValueError, LookupError or TypeError."""
    found = answer["result"]
    if found is None:
        return None
    passage = read_passage(found["document"], "")
    return TitlePage(passage.title, passage.text)


def _hits_of_each(answer: Any, queries: int, most: int) -> list[list[Hit]]:
    """Raises ValueError."""
    return [_hits(found, most) for found in _lists(answer, queries)]


def _lists(answer: Any, queries: int) -> list[list[Any]]:
    """The list of each query. Raises ValueError."""
    found = None
    if isinstance(answer, dict):
        found = answer.get("result")
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
        score = 0.0
        if scored:
            score = item.get("score", 0.0)
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise ValueError(f'"score" is {score!r:.40}, not a number')
        if not -_MOST_SCORE <= score <= _MOST_SCORE:
            raise ValueError(f'"score" is {score!r:.40}, not a finite number')
        hits.append(Hit(passage.title, passage.text, float(score), passage.id))
    return hits
