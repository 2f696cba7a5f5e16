"""Search and visit over an index of this machine."""

from __future__ import annotations

from pathlib import Path

from megatron_empg.environments.blocking import in_thread
from megatron_empg.environments.deep_search.search import observations
from megatron_empg.environments.deep_search.search.bm25_index import LONGEST_QUERY, SearchIndex
from megatron_empg.environments.deep_search.search.observations import ResultLimits
from megatron_empg.environments.deep_search.tools import QueryRefused


class IndexTools:
    """`Tools` over a `SearchIndex`. The files are mapped: processes of one machine share what they read."""

    def __init__(self, index: SearchIndex, shown: ResultLimits | None = None) -> None:
        self._index = index
        self._shown = shown or ResultLimits()

    @classmethod
    def open(cls, folder: Path, shown: ResultLimits | None = None) -> IndexTools:
        """Raises IndexFolderError."""
        return cls(SearchIndex.open(folder), shown)

    async def search(self, query: str) -> str:
        refuse_long("search", query)
        return await in_thread(self._searched, query)

    async def visit(self, title: str) -> str:
        refuse_long("visit", title)
        return observations.page(await in_thread(self._index.page, title))

    async def close(self) -> None:
        """The mapped files go with the process."""

    def _searched(self, query: str) -> str:
        # The texts of documents may be long: looking through them is no work for the event loop either.
        return observations.results(self._index.search(query, self._shown.top_k), query, self._shown)


def refuse_long(tool: str, argument: str) -> None:
    """Raises QueryRefused for what no index takes."""
    if len(argument) > LONGEST_QUERY:
        raise QueryRefused(
            f"the {tool} was refused : it has {len(argument)} characters , more than {LONGEST_QUERY}"
        )
