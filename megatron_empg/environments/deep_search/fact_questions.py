"""Questions made from a corpus of facts, drawn in balance, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from megatron_empg.environments.base import SPLITS, Split
from megatron_empg.environments.deep_search.asked import AskedQuestion
from megatron_empg.environments.deep_search.corpus import Corpus
from megatron_empg.environments.deep_search.questions import Question, SplitRules, split_questions
from megatron_empg.environments.mapped import Mapped

KIND_WEIGHTS = {"seen": 1.0, "held_out_path": 0.5, "held_out_relation": 0.3, "longer": 0.2}
_REPEAT_DRAWS = 50  # draws of questions already drawn before one is taken again


class FactQuestions:
    """A `QuestionSet` of all chains of a corpus's facts, split by `rules`."""

    def __init__(self, corpus: Corpus, rules: SplitRules) -> None:
        self._questions = split_questions(corpus, rules)
        self._balanced: dict[Split, _Balanced] = {}

    def all(self, split: Split) -> Sequence[AskedQuestion]:
        """All questions of a split, in a fixed order. Raises ValueError for an unknown split."""
        kinds = self._split(split)
        questions = list(chain.from_iterable([(kind, q) for q in found] for kind, found in kinds.items()))
        return Mapped(questions, lambda one: _asked(*one))

    def sample(self, split: Split, count: int, seed: int) -> list[AskedQuestion]:
        """Questions in balance over kinds, hops and paths, all different unless paths run out of questions."""
        return self._draw(split, count, random.Random(f"{split} {seed}"))

    def fixed(self, split: Split, count: int) -> list[AskedQuestion]:
        """The split's fixed evaluation set. Raises ValueError if the split has too few questions."""
        total = sum(map(len, self._split(split).values()))
        if count > total:
            raise ValueError(f"fixed: {count} {split} tasks were asked for; the corpus has {total}")
        drawn = self._draw(split, count, random.Random(f"{split} fixed"))
        if len({question.id for question in drawn}) < count:
            raise ValueError(f"fixed: {count} {split} tasks cannot be drawn in balance; ask for fewer")
        return drawn

    def _split(self, split: Split) -> dict[str, list[Question]]:
        if split not in self._questions:
            raise ValueError(f"split {split!r} is unknown; allowed: {', '.join(SPLITS)}")
        return self._questions[split]

    def _draw(self, split: Split, count: int, rng: random.Random) -> list[AskedQuestion]:
        if count and not any(self._split(split).values()):
            raise ValueError(f"{count} {split} tasks were asked for; the corpus has none")
        if split not in self._balanced:
            self._balanced[split] = _Balanced(self._split(split))
        drawn: list[AskedQuestion] = []
        seen: set[str] = set()
        for _ in range(count):
            for _ in range(_REPEAT_DRAWS):
                kind, question = self._balanced[split].draw(rng)
                if question.id not in seen:
                    break
            seen.add(question.id)
            drawn.append(_asked(kind, question))
        return drawn


def _asked(kind: str, question: Question) -> AskedQuestion:
    facts = {
        "entity": question.entity,
        "entity_type": question.entity_type,
        "relations": list(question.relations),
        "hops": len(question.relations),
        "answer": question.answer,
    }
    return AskedQuestion(question.id, question.text, (question.answer,), kind, facts)


def question_of(facts: Mapping[str, Any]) -> Question:
    """The chain of facts that a task's payload holds."""
    return Question(facts["entity"], facts["entity_type"], tuple(facts["relations"]), facts["answer"])


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
