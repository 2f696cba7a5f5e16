"""The scripted searcher whose walkthroughs warm a policy up, and the ways in which it errs."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from megatron_empg.environments.base import DemonstratedTurn, StepResult
from megatron_empg.environments.blocking import run_at_once
from megatron_empg.environments.deep_search.actions import SearchToolCall, format_action
from megatron_empg.environments.deep_search.changed import changed
from megatron_empg.environments.deep_search.corpus import Corpus, Document
from megatron_empg.environments.deep_search.environment import DeepSearchEnvironment
from megatron_empg.environments.deep_search.questions import Question
from megatron_empg.environments.deep_search.retrieval import Retriever

THOUGHTS = ("need the {relation}", "find the {relation}", "next : the {relation}", "now look for the {relation}")
LAST_THOUGHTS = ("answer found", "so it is this", "done")
_PATIENCE = 0.5  # chance to search again, rather than take what the snippet shows, when a fact is not found


@dataclass(frozen=True)
class SearcherSettings:
    """Chances of erring, each at one decision. `habit` follows a systematic wrong habit (see `HABIT`)."""

    stop_early: float = 0.15  # answers before a later hop
    wrong_relation: float = 0.14  # looks for another relation of the same entity
    skip_visit: float = 0.30  # takes the snippet's fact for the one it looks for
    vague_query: float = 0.12  # searches for the entity without the relation
    habit: float = 0.0

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"searcher {setting.name} is {value}; a chance lies between 0 and 1")


FALLIBLE = SearcherSettings()
# Two habits: never visit a page, but take the snippet's sentence for the answer; and leave out the last hop
# of three or more. Always followed, they are right 44% of the time. Followed in most cases, they are what greedy
# decoding does after warm-up, while sampling still meets the right decision, so that RL can find it.
HABIT = SearcherSettings(stop_early=0.02, wrong_relation=0.02, skip_visit=0.02, vague_query=0.02, habit=0.78)
FLAWLESS = SearcherSettings(0.0, 0.0, 0.0, 0.0, 0.0)
SEARCHERS = {"fallible": FALLIBLE, "habit": HABIT, "flawless": FLAWLESS}


def searcher_chances(name: str, given: Mapping[str, Any]) -> SearcherSettings:
    """Those of the searcher called `name`, but for what is `given`. Raises ValueError."""
    return changed(SEARCHERS[name], given, "searcher_settings")


class ScriptedSearcher:
    """Follows a question's relations through a real episode, knowing the facts, erring as its settings say."""

    def __init__(self, corpus: Corpus, retriever: Retriever, settings: SearcherSettings, max_turns: int = 8):
        self._corpus = corpus
        self._retriever = retriever
        self._settings = settings
        self._max_turns = max_turns

    def walk(self, question: Question, environment: DeepSearchEnvironment, seed: int) -> list[DemonstratedTurn]:
        """Its turns; the last one answers. The environment's tools must not wait."""
        rng = random.Random(f"{seed} {question.id}")
        turns: list[DemonstratedTurn] = []

        def act(thought: str, call: SearchToolCall) -> StepResult:
            action = format_action(thought, call, environment.syntax)
            result = run_at_once(environment.step(action))
            turns.append(DemonstratedTurn(action, result.observation))
            return result

        entity, hop = question.entity, 0
        hops = self._planned_hops(question, rng)
        while hop < hops and len(turns) < self._max_turns - 1:
            if hop > 0 and rng.random() < self._settings.stop_early:
                break
            relation = self._choose_relation(entity, question.relations[hop], rng)
            if rng.random() < self._settings.vague_query:
                query = entity
            else:
                query = f"{relation} {entity}"
            act(rng.choice(THOUGHTS).format(relation=relation), SearchToolCall("search", query))
            found = self._retriever.search(query)
            taken = self._from_snippet(entity, relation, found, rng)
            page = self._corpus.located.get((entity, relation))
            if taken is None and page in found and len(turns) < self._max_turns - 1:
                act(rng.choice(THOUGHTS).format(relation=relation), SearchToolCall("visit", page.title))
                taken = self._corpus.facts[entity][relation].object
            elif taken is None and rng.random() >= _PATIENCE and found and found[0].entity == entity:
                taken = found[0].facts[0].object
            if taken is not None:
                entity, hop = taken, hop + 1
        act(rng.choice(LAST_THOUGHTS), SearchToolCall("answer", entity))
        return turns

    def _planned_hops(self, question: Question, rng: random.Random) -> int:
        hops = len(question.relations)
        if hops >= 3 and rng.random() < self._settings.habit:
            return hops - 1
        return hops

    def _choose_relation(self, entity: str, right: str, rng: random.Random) -> str:
        known = self._corpus.relations_of.get(self._corpus.entity_types.get(entity, ""), [])
        others = [relation for relation in known if relation != right]
        if others and rng.random() < self._settings.wrong_relation:
            return rng.choice(others)
        return right

    def _from_snippet(
        self, entity: str, relation: str, found: tuple[Document, ...], rng: random.Random
    ) -> str | None:
        """What the searcher takes from the first page's sentence, or None if it reads on."""
        if not found or found[0].entity != entity:
            return None
        lead = found[0].facts[0]
        skip = max(self._settings.skip_visit, self._settings.habit)
        if lead.relation == relation or rng.random() < skip:
            return lead.object
        return None
