"""Deep Search over published questions and an index, with walkthroughs: what a stand-in policy learns tools from.

    environment:
      name: tests.recipes.tool_demonstrations:DemonstratedSearch
      settings: {prompt: tools, questions: {...}, index: ...}

The folder of questions and index is that of `prepared_miniature`, whose facts the scripted searcher knows.
"""

from pathlib import Path

from megatron_empg.environments.base import Demonstrations, EpisodeLimits, Task, Walkthrough
from megatron_empg.environments.calls.base import ToolCall
from megatron_empg.environments.calls.template_calls import TemplateCalls
from megatron_empg.environments.deep_search.corpus import Corpus, Document, load_corpus
from megatron_empg.environments.deep_search.environment import DeepSearchEnvironment
from megatron_empg.environments.deep_search.published_world import PUBLISHED_EXAMPLE, PUBLISHED_TOOLS
from megatron_empg.environments.deep_search.questions import enumerate_questions
from megatron_empg.environments.deep_search.scoring import GoldAnswerScore
from megatron_empg.environments.deep_search.search import observations
from megatron_empg.environments.deep_search.search.bm25_index import SearchIndex
from megatron_empg.environments.deep_search.search.observations import ResultLimits
from megatron_empg.environments.deep_search.searcher import ScriptedSearcher, SearcherSettings
from megatron_empg.environments.deep_search.settings import DeepSearchSettings
from megatron_empg.environments.deep_search.source import DeepSearch
from megatron_empg.environments.deep_search.tools import ImmediateTools
from tests.recipes.prepared_miniature import CORPUS, question_id

MOST_HOPS = 3
CHANCES = SearcherSettings(stop_early=0.06, wrong_relation=0.06, skip_visit=0.12, vague_query=0.06)
"""It errs less than in other warm-ups: what the policy itself gets wrong comes on top."""


class SpacedCalls(TemplateCalls):
    """Writes a blank before every argument: a byte-level tokenizer then spells a name the same wherever it is
    copied to. Those who read calls strip it."""

    def write(self, thought: str, call: ToolCall) -> str:
        spaced = {name: f" {value}" for name, value in call.arguments.items()}
        return super().write(thought, ToolCall(call.tool, spaced))


class ImmediateIndex:
    """Look-ups in an index, as `IndexTools` shows them."""

    def __init__(self, folder: Path) -> None:
        self.index = SearchIndex.open(folder)
        self._shown = ResultLimits()

    def search(self, query: str) -> str:
        return observations.results(self.index.search(query, self._shown.top_k), query, self._shown)

    def visit(self, title: str) -> str:
        return observations.page(self.index.page(title))


class IndexedCorpus:
    """What the scripted searcher makes of the index's results: the corpus's pages."""

    def __init__(self, index: SearchIndex, corpus: Corpus) -> None:
        self._index = index
        self._pages = {page.title: page for page in corpus.documents}

    def search(self, query: str) -> tuple[Document, ...]:
        return tuple(self._pages[hit.title] for hit in self._index.search(query, ResultLimits().top_k))


class DemonstratedSearch(DeepSearch):
    """The published questions of `prepared_miniature`, walked through by the scripted searcher."""

    def __init__(self, settings: DeepSearchSettings, limits: EpisodeLimits) -> None:
        super().__init__(settings, limits)
        assert settings.index is not None, "the walkthroughs search in it"
        corpus = load_corpus(CORPUS)
        self._known = {question.id: question for question in enumerate_questions(corpus, MOST_HOPS)}
        self._immediate = ImmediateIndex(settings.index)
        self._writing = SpacedCalls(PUBLISHED_TOOLS, PUBLISHED_EXAMPLE)
        found = IndexedCorpus(self._immediate.index, corpus)
        self._searcher = ScriptedSearcher(corpus, found, CHANCES, limits.max_turns)

    def demonstrations(self) -> Demonstrations:
        return self

    def walkthrough(self, task: Task, seed: int) -> Walkthrough:
        """The searcher's turns, through a real episode on the index."""
        score = GoldAnswerScore(tuple(task.payload["answers"]))
        environment = DeepSearchEnvironment(ImmediateTools(self._immediate), score, self._writing)
        return Walkthrough(self._searcher.walk(self._known[question_id(task.id)], environment, seed))
