"""One Deep Search episode."""

from megatron_empg.environments.base import StepResult
from megatron_empg.environments.deep_search.actions import MalformedCall, parse_action
from megatron_empg.environments.deep_search.corpus import Corpus
from megatron_empg.environments.deep_search.retrieval import Retriever
from megatron_empg.environments.deep_search.text import normalise_answer, normalise_title


class DeepSearchEnvironment:
    """`search` shows the best page's first sentence and the second page's title, `visit` a whole page,
    `answer` ends the episode: reward 1 for a normalised exact match, else 0."""

    def __init__(self, corpus: Corpus, retriever: Retriever, answer: str):
        self._corpus = corpus
        self._retriever = retriever
        self._answer = normalise_answer(answer)
        self._done = False

    def step(self, action: str) -> StepResult:
        """Carry out one turn. Raises RuntimeError once an answer was given."""
        if self._done:
            raise RuntimeError("the episode is done; make a new environment for another")
        try:
            call = parse_action(action)
        except MalformedCall as error:
            return StepResult(str(error), done=False, info={"malformed": True})
        info: dict[str, float | str | bool] = {"malformed": False, "tool": call.tool}
        if call.tool == "answer":
            self._done = True
            right = normalise_answer(call.argument) == self._answer
            return StepResult(None, done=True, reward=float(right), info=info)
        observe = self._search if call.tool == "search" else self._visit
        return StepResult(observe(call.argument), done=False, info=info)

    def _search(self, query: str) -> str:
        found = self._retriever.search(query)
        if not found:
            return "no results"
        observation = f"found {found[0].title} : {found[0].sentences[0]}"
        return observation + (f" also {found[1].title}" if len(found) > 1 else "")

    def _visit(self, title: str) -> str:
        document = self._corpus.by_title.get(normalise_title(title))
        return f"page : {document.text}" if document else "no page"
