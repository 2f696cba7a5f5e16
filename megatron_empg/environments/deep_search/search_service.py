"""The Deep Search tools as a service, so that a corpus lies in one place and not in every process that plays.

    EMPG_SEARCH_TOKEN=… python -m megatron_empg.environments.deep_search.search_service CORPUS --port 9000

POST /search and /visit take {"argument": TEXT} and answer {"observation": TEXT}; GET /health. Every route wants
the service's token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_empg.environments.deep_search import serving
from megatron_empg.environments.deep_search.corpus import Corpus, load_corpus
from megatron_empg.environments.deep_search.retrieval import Retriever
from megatron_empg.environments.deep_search.service_client import ClientLimits, ServiceClient
from megatron_empg.environments.deep_search.serving import Answer, BadRequest
from megatron_empg.environments.deep_search.text import normalise_title
from megatron_empg.environments.deep_search.tools import BlockingTools

if TYPE_CHECKING:
    from starlette.applications import Starlette


class LocalTools:
    """Tools over a corpus of this process. A search shows the best page's first sentence and the second page's
    title, a visit the whole page.
    """

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
        if not document:
            return "no page"
        return f"page : {document.text}"


class RemoteTools:
    """`Tools`: the same from a service at `url`. `within`: seconds that all attempts to ask it have."""

    def __init__(self, url: str, *, within: float | None = None) -> None:
        """Raises ValueError for what is no URL of a server."""
        self._service = ServiceClient(url, ClientLimits.of(within))

    async def search(self, query: str) -> str:
        return await self._service.ask("search", {"argument": query}, _observation)

    async def visit(self, title: str) -> str:
        return await self._service.ask("visit", {"argument": title}, _observation)

    async def close(self) -> None:
        await self._service.close()


def _observation(answer: Any) -> str:
    """Raises LookupError, TypeError or ValueError."""
    found = answer["observation"]
    if not isinstance(found, str):
        raise ValueError(f'"observation" is {found!r:.40}, not a text')
    return found


def application(tools: BlockingTools, token: str) -> Starlette:
    """The service as an ASGI application."""
    answers = {"/search": _answer(tools.search), "/visit": _answer(tools.visit)}
    return serving.application(answers, {}, token)


def _answer(look_up: Callable[[str], str]) -> Answer:
    def answer(asked: dict[str, Any]) -> dict[str, str]:
        argument = asked.get("argument")
        if not isinstance(argument, str):
            raise BadRequest('the body is {"argument": TEXT}')
        return {"observation": look_up(argument)}

    return answer


def main() -> None:
    """Serve a corpus until the process that started this one ends."""

    def of_corpus(path: Path, token: str) -> Starlette:
        corpus = load_corpus(path)
        return application(LocalTools(corpus, Retriever(corpus)), token)

    serving.serve(of_corpus)


if __name__ == "__main__":
    main()
