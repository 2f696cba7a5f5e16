"""Questions: every chain of one to four facts, or as many as asked for, and which split it falls into.

Training and the in-distribution test share relation paths (a path: the first entity's type and the
relations in order) and differ in questions. Out of distribution are, each a kind of its own:

- `held_out_path`: a seeded 15% of the paths of two and more hops;
- `held_out_relation`: chains with a relation that training never chains from that type of first entity;
- `longer`: the longest chains (four facts by default) from types of first entity whose chains stop at three in
  training.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from megatron_empg.environments.base import Split
from megatron_empg.environments.deep_search.changed import changed
from megatron_empg.environments.deep_search.corpus import Corpus

HOPS_BOUND = 20
"""No chain of facts may be asked to be longer."""
_WORDINGS = (
    "what is the {chain} of {entity} ?",
    "name the {chain} of {entity} .",
    "tell me the {chain} of {entity} .",
)


class Question(NamedTuple):
    """The answer is what following `relations` from `entity` leads to."""

    entity: str
    entity_type: str
    relations: tuple[str, ...]
    answer: str

    @property
    def path(self) -> tuple[str, ...]:
        """What training may or may not have seen: the type of the first entity and the relations."""
        return (self.entity_type, *self.relations)

    @property
    def id(self) -> str:
        """Names the question; unique within a corpus."""
        return f"{self.entity}|{'|'.join(self.relations)}"

    @property
    def text(self) -> str:
        """What the policy is asked. The relation asked for last is named first, as in English."""
        wording = _WORDINGS[int(_share(f"wording {self.id}") * len(_WORDINGS))]
        return wording.format(chain=" of the ".join(reversed(self.relations)), entity=self.entity)


@dataclass(frozen=True)
class SplitRules:
    """What is held out. The shares are of paths and of questions; all draws follow from `seed`. The relations and
    types named by default are the miniature's; `fitted` leaves out what a corpus does not have.

    A question chains `fewest_hops` to `most_hops` facts. Training chains up to `train_hops`, and `most_hops` from
    the types in `longer_from`; `held_out_relations` stand in its chains only from the types in `composed_from`.
    """

    fewest_hops: int = 1
    most_hops: int = 4
    train_hops: int = 3
    longer_from: tuple[str, ...] = ("city", "province")
    held_out_paths: float = 0.15
    held_out_relations: tuple[str, ...] = ("lowest point", "time zone")
    composed_from: tuple[str, ...] = ("province", "element")
    test_questions: float = 0.08
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.fewest_hops <= self.most_hops <= HOPS_BOUND:
            given = f"fewest_hops {self.fewest_hops}, most_hops {self.most_hops}"
            raise ValueError(f"{given}: they must ascend and lie between 1 and {HOPS_BOUND}")

    @classmethod
    def fitted(cls, corpus: Corpus, given: Mapping[str, Any]) -> "SplitRules":
        """The rules for a corpus: those given, and the defaults as far as they apply.

        Raises ValueError for a rule that there is not, and for a relation or type of entity that is given and not
        there.
        """
        rules = changed(cls(), given, "splits")
        there = {
            "held_out_relations": corpus.relations,
            "longer_from": list(corpus.relations_of),
            "composed_from": list(corpus.relations_of),
        }
        applying: dict[str, Any] = {}
        for key, known in there.items():
            named = tuple(getattr(rules, key))
            missing = [name for name in named if name not in known]
            if missing and key in given:
                raise ValueError(f"deep_search {key} names {missing[0]!r}; allowed: {', '.join(known)}")
            applying[key] = tuple(name for name in named if name in known)
        return replace(rules, **applying)

    def kind(self, path: tuple[str, ...]) -> str:
        """`seen`, `held_out_path`, `held_out_relation` or `longer`."""
        first, relations = path[0], path[1:]
        trained = self.most_hops if first in self.longer_from else self.train_hops
        if len(relations) > trained:
            return "longer"
        held_out = first not in self.composed_from and not set(relations).isdisjoint(self.held_out_relations)
        if len(relations) > 1 and held_out:
            return "held_out_relation"
        if len(relations) > 1 and _share(f"path {self.seed} {'|'.join(path)}") < self.held_out_paths:
            return "held_out_path"
        return "seen"

    def is_test(self, question: Question) -> bool:
        """Whether a question on a seen path is kept for the in-distribution test."""
        return _share(f"question {self.seed} {question.id}") < self.test_questions


def _share(key: str) -> float:
    """A number in [0, 1) that follows from the key alone, on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest()) / 2**48


def enumerate_questions(corpus: Corpus, max_hops: int = SplitRules.most_hops) -> Iterator[Question]:
    """Every chain of up to so many facts that never comes back to an entity it passed."""
    for entity, entity_type in corpus.entity_types.items():
        chains: list[tuple[tuple[str, ...], tuple[str, ...], bool]] = [((entity,), (), True)]
        for _ in range(max_hops):
            longer = []
            for passed, relations, open_end in chains:
                if not open_end:
                    continue
                for fact in corpus.facts[passed[-1]].values():
                    if fact.object in passed:
                        continue
                    # An object of another type than the page of that name is another thing: "georgia" the state.
                    goes_on = corpus.entity_types.get(fact.object, "") == fact.object_type
                    longer.append(((*passed, fact.object), (*relations, fact.relation), goes_on))
            for passed, relations, _ in longer:
                yield Question(entity, entity_type, relations, passed[-1])
            chains = longer


def split_questions(corpus: Corpus, rules: SplitRules) -> dict[Split, dict[str, list[Question]]]:
    """Questions by split, then by kind. A path left without training questions gives up its test ones."""
    kinds: dict[tuple[str, ...], str] = {}
    train: dict[tuple[str, ...], list[Question]] = {}
    test: dict[tuple[str, ...], list[Question]] = {}
    ood: dict[str, list[Question]] = {"held_out_path": [], "held_out_relation": [], "longer": []}
    for question in enumerate_questions(corpus, rules.most_hops):
        if len(question.relations) < rules.fewest_hops:
            continue
        path = question.path
        if path not in kinds:
            kinds[path] = rules.kind(path)
        if kinds[path] != "seen":
            ood[kinds[path]].append(question)
        else:
            (test if rules.is_test(question) else train).setdefault(path, []).append(question)
    for path in [path for path in test if path not in train]:
        train[path] = test.pop(path)
    return {
        "train": {"seen": [question for found in train.values() for question in found]},
        "test_id": {"seen": [question for found in test.values() for question in found]},
        "test_ood": ood,
    }
