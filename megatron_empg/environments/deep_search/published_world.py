"""Published questions over a search of real documents: what is asked, looked up in, and told of the tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megatron_empg.environments.base import Split
from megatron_empg.environments.calls.base import Example, ExampleTurn, Tool
from megatron_empg.environments.deep_search.actions import SearchToolCall
from megatron_empg.environments.deep_search.agent_tools import ANSWER, SEARCH, VISIT
from megatron_empg.environments.deep_search.asked import AskedQuestion
from megatron_empg.environments.deep_search.data.published_question import PublishedQuestion
from megatron_empg.environments.deep_search.data.published_questions import PublishedQuestions
from megatron_empg.environments.deep_search.data.question_files import QuestionFiles
from megatron_empg.environments.deep_search.search import observations
from megatron_empg.environments.deep_search.search.bm25_index import Hit
from megatron_empg.environments.deep_search.search.observations import ResultLimits
from megatron_empg.environments.deep_search.search.passages import TitlePage
from megatron_empg.environments.deep_search.service_client import ClientLimits
from megatron_empg.environments.deep_search.settings import DeepSearchSettings
from megatron_empg.environments.deep_search.tools import Tools
from megatron_empg.environments.mapped import Mapped

PUBLISHED_TOOLS: tuple[Tool, ...] = (
    replace(
        SEARCH, description="shows the best pages for your words, each with its title and a part of its text."
    ),
    replace(VISIT, description="shows the page of that title from its beginning."),
    ANSWER,
)

_BOOK = Hit("The Hobbit", "The Hobbit is a novel of 1937. Its hero is Bilbo Baggins.", 1.0, "1")
_BOOK_PAGE = TitlePage(_BOOK.title, f"{_BOOK.text} It was written by J. R. R. Tolkien.")
_AUTHOR = Hit("J. R. R. Tolkien", "J. R. R. Tolkien was born in Bloemfontein in 1892.", 1.0, "2")


def _found(hit: Hit, query: str) -> str:
    return observations.results([hit], query, ResultLimits())


PUBLISHED_EXAMPLE = Example(
    "Where was the author of The Hobbit born?",
    (
        ExampleTurn(
            "I need the author.",
            SearchToolCall("search", "author of The Hobbit").general,
            _found(_BOOK, "author of The Hobbit"),
        ),
        ExampleTurn(
            "The page should name the author.",
            SearchToolCall("visit", _BOOK.title).general,
            observations.page(_BOOK_PAGE),
        ),
        ExampleTurn(
            "Now the birthplace.",
            SearchToolCall("search", "J. R. R. Tolkien birthplace").general,
            _found(_AUTHOR, "J. R. R. Tolkien birthplace"),
        ),
        ExampleTurn("That answers it.", SearchToolCall("answer", "Bloemfontein").general, None),
    ),
)
"""Its results are written as the search itself writes them."""


class FileQuestions:
    """A `QuestionSet` of published files. The kind of a question is its dataset."""

    def __init__(self, files: QuestionFiles) -> None:
        """Raises ValueError or OSError for files that cannot be used."""
        self._files = files
        self._published = PublishedQuestions(files)

    def all(self, split: Split) -> Sequence[AskedQuestion]:
        if not self._files.of(split):
            return ()
        return Mapped(self._published.all(split), _asked)

    def sample(self, split: Split, count: int, seed: int) -> list[AskedQuestion]:
        return [_asked(question) for question in self._published.sample(split, count, seed)]

    def fixed(self, split: Split, count: int) -> list[AskedQuestion]:
        return [_asked(question) for question in self._published.fixed(split, count)]


def _asked(question: PublishedQuestion) -> AskedQuestion:
    facts = {"hops": question.hops, "type": question.type}
    return AskedQuestion(question.id, question.text, question.answers, question.dataset, facts)


def search_tools(settings: DeepSearchSettings, within: float | None) -> Tools:
    """Tools over the service at a URL, or else over a local index. Raises ValueError or OSError."""
    shown = ResultLimits(settings.results, settings.snippet_characters)
    if settings.search_url is not None:
        from megatron_empg.environments.deep_search.search.retrieve_client import RetrieveClient, RetrieveTools

        return RetrieveTools(RetrieveClient(settings.search_url, ClientLimits.of(within)), shown)
    assert settings.index is not None, "the settings have seen to it"
    if settings.encoder is not None:
        from megatron_empg.environments.deep_search.search.dense import DenseIndex, DenseTools
        from megatron_empg.environments.deep_search.search.encoder import SentenceEncoder

        encoder = SentenceEncoder(settings.encoder)
        return DenseTools(DenseIndex(settings.index, encoder, settings.encoder.engine), shown)
    from megatron_empg.environments.deep_search.search.index_tools import IndexTools

    return IndexTools.open(settings.index, shown)
