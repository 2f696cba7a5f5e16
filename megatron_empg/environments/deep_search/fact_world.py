"""A corpus of facts as a world to search: its questions, its own search, and a scripted searcher in it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from megatron_empg.environments.base import DemonstratedTurn
from megatron_empg.environments.calls.base import CallSyntax
from megatron_empg.environments.deep_search.actions import SearchToolCall
from megatron_empg.environments.deep_search.asked import AskedQuestion
from megatron_empg.environments.deep_search.corpus import Corpus, load_corpus
from megatron_empg.environments.deep_search.environment import DeepSearchEnvironment
from megatron_empg.environments.deep_search.fact_questions import FactQuestions, question_of
from megatron_empg.environments.deep_search.questions import SplitRules
from megatron_empg.environments.deep_search.retrieval import Retriever
from megatron_empg.environments.deep_search.scoring import GoldAnswerScore
from megatron_empg.environments.deep_search.search_service import LocalTools, RemoteTools
from megatron_empg.environments.deep_search.searcher import ScriptedSearcher, searcher_chances
from megatron_empg.environments.deep_search.settings import DeepSearchSettings
from megatron_empg.environments.deep_search.tools import ImmediateTools, ThreadedTools, Tools


def _read(path: Path) -> tuple[Corpus, Retriever]:
    """The corpus and its search, those of before where the file has not changed: a check and the run that follows
    it in the same process read it once."""
    if not path.exists():
        load_corpus(path)  # says what is wrong
    state = path.stat()
    return _read_as_of(path.resolve(), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=2)
def _read_as_of(path: Path, changed: int, size: int) -> tuple[Corpus, Retriever]:
    corpus = load_corpus(path)
    return corpus, Retriever(corpus)


@lru_cache(maxsize=2)
def _questions(corpus: Corpus, rules: SplitRules) -> FactQuestions:
    return FactQuestions(corpus, rules)


class FactWorld:
    """Everything that follows from one corpus. Raises ValueError, or OSError where it cannot be read."""

    def __init__(self, corpus: Path, settings: DeepSearchSettings, max_turns: int) -> None:
        self.corpus, self.retriever = _read(corpus)
        self.questions = _questions(self.corpus, SplitRules.fitted(self.corpus, settings.splits))
        self._local = LocalTools(self.corpus, self.retriever)
        chances = searcher_chances(settings.searcher, settings.searcher_settings)
        self._searcher = ScriptedSearcher(self.corpus, self.retriever, chances, max_turns)

    def tools(self, service: str | None, within: float | None) -> Tools:
        """Tools over the corpus or the service at a URL; each look-up takes at most so many seconds."""
        if service is None:
            return ThreadedTools(self._local)
        return RemoteTools(service, within=within)

    def first_look(self, question: AskedQuestion) -> tuple[SearchToolCall, ...]:
        """A search for the first fact of a question, and a visit to the page that tells it."""
        asked = question_of(question.facts)
        relation = asked.relations[0]
        page = self.corpus.located[asked.entity, relation]
        return SearchToolCall("search", f"{asked.entity} {relation}"), SearchToolCall("visit", page.title)

    def walkthrough(self, question: AskedQuestion, seed: int, syntax: CallSyntax) -> list[DemonstratedTurn]:
        """The scripted searcher's turns on a question, through a real episode on the corpus at hand."""
        environment = DeepSearchEnvironment(ImmediateTools(self._local), GoldAnswerScore(question.answers), syntax)
        return self._searcher.walk(question_of(question.facts), environment, seed)
