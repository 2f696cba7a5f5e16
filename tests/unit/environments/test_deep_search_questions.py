"""Questions: one answer each, which the pages' own sentences give; splits that do not overlap."""

import json
import random
import re
from collections import Counter

import pytest

from megatron_empg.environments.deep_search.questions import SplitRules, split_questions
from megatron_empg.environments.deep_search.text import normalise_answer
from megatron_empg.environments.registry import make_task_source

HELD_OUT = {"lowest point", "time zone"}
SENTENCES = [
    re.compile(pattern)
    for pattern in (
        r"(?P<s>.+) is a country in the (?P<r>region) (?P<o>.+) \.",
        r"(?P<s>.+) is a (?:city|province|peak) in the (?P<r>country) (?P<o>.+) \.",
        r"(?P<s>.+) has the (?P<r>time zone) (?P<o>.+) \.",
        r"(?P<s>.+) is of the (?P<r>kind) (?P<o>.+) \.",
        r"(?P<s>.+) is in the (?P<r>state|series) (?P<o>.+) \.",
        r"(?P<s>.+) is in (?P<r>period|block) (?P<o>.+) \.",
        r"the (?P<r>currency) of (?P<s>.+?) is the (?P<o>.+) \.",
        r"the (?P<r>[a-z ]+?) of (?P<s>.+?) is (?P<o>.+) \.",
    )
]


@pytest.fixture(scope="module")
def told(miniature):
    """(subject, relation) → objects, read from the sentences alone."""
    found = {}
    for line in (miniature / "corpus.jsonl").read_text().splitlines():
        for sentence in json.loads(line)["sentences"]:
            match = next(filter(None, (pattern.fullmatch(sentence) for pattern in SENTENCES)))
            found.setdefault((match["s"], match["r"]), set()).add(match["o"])
    return found


@pytest.mark.parametrize("split", ["train", "test_id", "test_ood"])
def test_every_answer_is_unique_and_what_the_sentences_say(source, told, split):
    for task in source.tasks(split):
        entity = task.payload["entity"]
        for relation in task.payload["relations"]:
            (entity,) = told[entity, relation]
        assert entity == task.payload["answer"], task.id


def test_corpus_is_large_and_its_text_plain(source):
    assert len(source.corpus.documents) >= 2000
    assert len(source.corpus.relations) >= 19
    assert all(document.text.isascii() and document.text.islower() for document in source.corpus.documents)


def test_facts_known_from_elsewhere(source):
    facts = source.corpus.facts
    assert facts["france"]["capital"].object == "paris"
    assert facts["japan"]["currency"].object == "japanese yen"
    assert facts["argentina"]["largest neighbour"].object == "brazil"
    assert facts["nepal"]["highest point"].object == "mount everest"
    assert facts["polonium"]["discovery country"].object == "france"
    assert facts["iron"]["atomic number"].object == "26"


def test_a_state_is_not_taken_for_the_country_of_its_name(source):
    assert source.corpus.facts["atlanta"]["state"].object == "georgia"
    assert "georgia" in source.corpus.entity_types
    ids = {task.id for split in ("train", "test_id", "test_ood") for task in source.tasks(split)}
    assert "atlanta|state" in ids
    assert not any(task_id.startswith("atlanta|state|") for task_id in ids)


def test_splits_are_disjoint_and_hold_out_what_they_say(source):
    ids, paths = {}, {}
    for split in ("train", "test_id", "test_ood"):
        tasks = source.tasks(split)
        ids[split] = {task.id for task in tasks}
        assert len(ids[split]) == len(tasks)
        paths[split] = {(task.payload["entity_type"], *task.payload["relations"]) for task in tasks}
    assert ids["train"].isdisjoint(ids["test_id"] | ids["test_ood"])
    assert ids["test_id"].isdisjoint(ids["test_ood"])
    assert paths["test_id"] <= paths["train"]
    assert paths["test_ood"].isdisjoint(paths["train"])
    composed_from = {path[0] for path in paths["train"] if len(path) > 2 and HELD_OUT & set(path[1:])}
    assert composed_from == {"province", "element"}
    assert {path[0] for path in paths["train"] if len(path) == 1 + 4} == {"city", "province"}
    assert max(map(len, paths["test_ood"])) == 1 + 4


def test_the_first_part_of_the_warm_up_trains_on_nothing_that_is_held_out_later(source, miniature):
    splits = {"longer_from": [], "composed_from": []}
    first = make_task_source("deep_search", corpus=miniature / "corpus.jsonl", splits=splits)
    held_out = {task.id for split in ("test_id", "test_ood") for task in source.tasks(split)}
    assert held_out.isdisjoint(task.id for task in first.tasks("train"))


def test_kinds_of_the_out_of_distribution_test(source):
    for task in source.tasks("test_ood"):
        relations, kind = task.payload["relations"], task.payload["kind"]
        first = task.payload["entity_type"]
        longer = len(relations) == 4 and first not in ("city", "province")
        held_out = bool(HELD_OUT & set(relations)) and first not in ("province", "element")
        assert kind == ("longer" if longer else "held_out_relation" if held_out else "held_out_path")
    kinds = Counter(task.payload["kind"] for task in source.fixed("test_ood", 1000))
    assert 450 < kinds["held_out_path"] < 550
    assert 250 < kinds["held_out_relation"] < 350
    assert 150 < kinds["longer"] < 250


def test_another_seed_holds_out_other_paths(source):
    other = split_questions(source.corpus, SplitRules(seed=1))["test_ood"]["held_out_path"]
    held_out = [task for task in source.tasks("test_ood") if task.payload["kind"] == "held_out_path"]
    assert {question.path for question in other} != {
        (task.payload["entity_type"], *task.payload["relations"]) for task in held_out
    }


def test_chains_are_as_long_as_asked_and_told_apart_as_the_shorter_ones_are(source):
    rules = SplitRules(fewest_hops=6, most_hops=8, train_hops=8)
    found = split_questions(source.corpus, rules)
    ids, lengths = {}, {}
    for split, kinds in found.items():
        questions = [question for kind in kinds.values() for question in kind]
        ids[split] = {question.id for question in questions}
        lengths[split] = {len(question.relations) for question in questions}
    assert lengths == {"train": {6, 7, 8}, "test_id": {6, 7, 8}, "test_ood": {6, 7, 8}}
    assert not found["test_ood"]["longer"], "training chains as many facts as there are"
    assert ids["train"].isdisjoint(ids["test_id"] | ids["test_ood"])


def test_no_answer_is_an_entity_of_its_question_up_to_normalisation(source):
    rng = random.Random(0)
    tasks = source.tasks("train")
    for _ in range(3000):
        task = tasks[rng.randrange(len(tasks))]
        assert normalise_answer(task.payload["answer"]) != normalise_answer(task.payload["entity"])


def test_the_wording_holds_relations_and_entity(source):
    task = next(t for t in source.tasks("train") if t.id == "france|largest neighbour|capital")
    assert task.prompt[0]["role"] == "user"
    assert task.prompt[0]["content"] == task.payload["question"]
    assert " capital of the largest neighbour of france " in task.payload["question"]
