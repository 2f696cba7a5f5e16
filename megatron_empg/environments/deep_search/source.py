"""Deep Search tasks: drawn in balance, the same for the same seed."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, overload

from megatron_empg.environments.base import SPLITS, EpisodeLimits, SideService, Split, Task, TaskSource
from megatron_empg.environments.calls.base import CallSyntax
from megatron_empg.environments.deep_search import search_service
from megatron_empg.environments.deep_search.actions import Call, format_action, gold_action
from megatron_empg.environments.deep_search.corpus import load_corpus
from megatron_empg.environments.deep_search.environment import DeepSearchEnvironment
from megatron_empg.environments.deep_search.prompt import syntax_for
from megatron_empg.environments.deep_search.questions import Question, SplitRules, split_questions
from megatron_empg.environments.deep_search.retrieval import Retriever
from megatron_empg.environments.deep_search.scoring import Compared
from megatron_empg.environments.deep_search.search_service import LocalTools, RemoteTools
from megatron_empg.environments.deep_search.searcher import (
    LAST_THOUGHTS,
    SEARCHERS,
    ScriptedSearcher,
    searcher_chances,
)
from megatron_empg.environments.deep_search.settings import DeepSearchSettings
from megatron_empg.environments.deep_search.tools import AtOnce, InThreads
from megatron_empg.environments.settings import EnvironmentSettings

KIND_WEIGHTS = {"seen": 1.0, "held_out_path": 0.5, "held_out_relation": 0.3, "longer": 0.2}
_REPEAT_DRAWS = 50  # draws of questions already drawn before one is taken again


class _Tasks(Sequence[Task]):
    """Tasks made when asked for: a split has tens of thousands."""

    def __init__(self, questions: Sequence[tuple[str, Question]], syntax: CallSyntax, max_turns: int):
        self._questions = questions
        self._syntax = syntax
        self._max_turns = max_turns

    def __len__(self) -> int:
        return len(self._questions)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> "_Tasks": ...
    def __getitem__(self, index: int | slice) -> "Task | _Tasks":
        if isinstance(index, slice):
            return _Tasks(self._questions[index], self._syntax, self._max_turns)
        return _make_task(*self._questions[index], self._syntax, self._max_turns)


def _make_task(kind: str, question: Question, syntax: CallSyntax, max_turns: int) -> Task:
    payload: dict[str, Any] = {
        "question": question.text,
        "entity": question.entity,
        "entity_type": question.entity_type,
        "relations": list(question.relations),
        "hops": len(question.relations),
        "answer": question.answer,
        "kind": kind,
    }
    prompt = syntax.messages(question.text, max_turns)
    gold = gold_action(LAST_THOUGHTS[0], question.answer, syntax)
    return Task(question.id, prompt, payload, gold, kind, syntax.template_tools, syntax.observation_role)


class _Balanced:
    """Draws a kind by its weight, then evenly its number of hops, its path and the question."""

    def __init__(self, kinds: Mapping[str, Iterable[Question]]):
        self._kinds: dict[str, list[list[list[Question]]]] = {}
        for kind, questions in kinds.items():
            hops: dict[int, dict[tuple[str, ...], list[Question]]] = {}
            for question in questions:
                paths = hops.setdefault(len(question.relations), {})
                paths.setdefault(question.path, []).append(question)
            if hops:
                self._kinds[kind] = [[hops[n][path] for path in sorted(hops[n])] for n in sorted(hops)]
        self._weights = [KIND_WEIGHTS[kind] for kind in self._kinds]

    def draw(self, rng: random.Random) -> tuple[str, Question]:
        kind = rng.choices(list(self._kinds), self._weights)[0]
        return kind, rng.choice(rng.choice(rng.choice(self._kinds[kind])))


class DeepSearch(TaskSource):
    """Tasks, episodes and walkthroughs over one corpus; `TaskSource` says what the methods do.

    With a `search_url` (see `search_service`) episodes look things up there, within the time of a step.
    """

    Settings = DeepSearchSettings

    def __init__(self, settings: DeepSearchSettings, limits: EpisodeLimits) -> None:
        super().__init__(settings, limits)
        self.corpus = load_corpus(settings.corpus)
        self.retriever = Retriever(self.corpus)
        self._local = LocalTools(self.corpus, self.retriever)
        url, step_timeout = settings.search_url, limits.step_timeout
        self._tools = InThreads(RemoteTools(url, within=step_timeout) if url else self._local)
        chances = searcher_chances(settings.searcher, settings.searcher_settings)
        self._searcher = ScriptedSearcher(self.corpus, self.retriever, chances, limits.max_turns)
        rules = SplitRules.fitted(self.corpus, settings.splits)
        self._questions = split_questions(self.corpus, rules)
        self._balanced: dict[Split, _Balanced] = {}
        self._syntax = syntax_for(settings.prompt)

    def tasks(self, split: Split) -> Sequence[Task]:
        """All tasks of a split, in a fixed order. Raises ValueError for an unknown split."""
        kinds = self._split(split)
        questions = list(chain.from_iterable([(kind, q) for q in found] for kind, found in kinds.items()))
        return _Tasks(questions, self._syntax, self.limits.max_turns)

    def sample(self, split: Split, count: int, seed: int) -> list[Task]:
        """Tasks in balance over kinds, hops and paths, all different unless paths run out of questions."""
        return self._draw(split, count, random.Random(f"{split} {seed}"))

    def fixed(self, split: Split, count: int) -> list[Task]:
        """The split's fixed evaluation set. Raises ValueError if the split has too few questions."""
        total = sum(map(len, self._split(split).values()))
        if count > total:
            raise ValueError(f"fixed: {count} {split} tasks were asked for; the corpus has {total}")
        drawn = self._draw(split, count, random.Random(f"{split} fixed"))
        if len({task.id for task in drawn}) < count:
            raise ValueError(f"fixed: {count} {split} tasks cannot be drawn in balance; ask for fewer")
        return drawn

    def make(self, task: Task) -> DeepSearchEnvironment:
        """A fresh episode."""
        return DeepSearchEnvironment(self._tools, Compared((task.payload["answer"],)), self._syntax)

    def walkthrough(self, task: Task, seed: int) -> list[tuple[str, str | None]]:
        """The scripted searcher's turns on a task, through a real episode on the corpus at hand."""
        payload = task.payload
        question = Question(
            payload["entity"], payload["entity_type"], tuple(payload["relations"]), payload["answer"]
        )
        environment = DeepSearchEnvironment(AtOnce(self._local), Compared((payload["answer"],)), self._syntax)
        return self._searcher.walk(question, environment, seed)

    def rehearse(self, task: Task) -> list[str]:
        """A search for the task's entity, a visit to its page, and the answer."""
        calls = (
            Call("search", task.payload["entity"]),
            Call("visit", task.payload["entity"]),
            Call("answer", task.payload["answer"]),
        )
        return [format_action("a rehearsal", call, self._syntax) for call in calls]

    @classmethod
    def services(cls, settings: EnvironmentSettings) -> tuple[SideService, ...]:
        """The tools as a service, so that the corpus lies in one place; none where settings name one."""
        assert isinstance(settings, DeepSearchSettings)
        if settings.search_url is not None:
            return ()
        arguments = ("-m", search_service.__name__, str(settings.corpus))
        return (SideService("search", "search_url", arguments, search_service.TOKEN_VARIABLE),)

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """With the chances of erring of the searcher that is `given`. The rules of splits are those before they
        are fitted to a corpus."""
        found = super().defaults(given)
        found["splits"] = asdict(SplitRules())
        searcher = SEARCHERS.get(str(given.get("searcher", found["searcher"])))
        if searcher is not None:  # an unknown one is refused elsewhere
            found["searcher_settings"] = asdict(searcher)
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    def _split(self, split: Split) -> dict[str, list[Question]]:
        if split not in self._questions:
            raise ValueError(f"split {split!r} is unknown; allowed: {', '.join(SPLITS)}")
        return self._questions[split]

    def _draw(self, split: Split, count: int, rng: random.Random) -> list[Task]:
        if count and not any(self._split(split).values()):
            raise ValueError(f"{count} {split} tasks were asked for; the corpus has none")
        if split not in self._balanced:
            self._balanced[split] = _Balanced(self._split(split))
        drawn: list[Task] = []
        seen: set[str] = set()
        for _ in range(count):
            for _ in range(_REPEAT_DRAWS):
                kind, question = self._balanced[split].draw(rng)
                if question.id not in seen:
                    break
            seen.add(question.id)
            drawn.append(_make_task(kind, question, self._syntax, self.limits.max_turns))
        return drawn
