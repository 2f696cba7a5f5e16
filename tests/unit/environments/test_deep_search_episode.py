"""Episodes: what actions bring about, malformed ones too, and what retrieval must not do."""

import contextlib
import random
import re
import time

import pytest

from megatron_empg.environments import SPLITS, Environment
from megatron_empg.environments.deep_search.actions import (
    MalformedCall,
    SearchToolCall,
    format_action,
    parse_action,
)
from megatron_empg.environments.deep_search.environment import DeepSearchEnvironment
from megatron_empg.environments.deep_search.prompt import syntax_for
from megatron_empg.environments.deep_search.scoring import GoldAnswerScore
from megatron_empg.environments.deep_search.text import normalise_answer, normalise_title, words
from megatron_empg.environments.deep_search.tools import QueryRefused
from megatron_empg.environments.registry import make_task_source
from tests.support.acting import begun, step


@pytest.fixture(scope="module")
def task(source):
    return next(t for t in source.tasks("train") if t.id == "france|largest neighbour|capital")


@pytest.fixture
def episode(source, task):
    return begun(source.make(task))


def call(tool, argument):
    return format_action("need this", SearchToolCall(tool, argument))


def test_search_visit_answer(episode):
    assert isinstance(episode, Environment)
    found = step(episode, call("search", "largest neighbour france"))
    assert found.observation.startswith(
        "found france borders : the largest neighbour of france is spain . also france "
    )
    page = step(episode, call("visit", "Spain  Profile"))
    assert page.observation == (
        "page : spain is a country in the region southern europe . the capital of spain is madrid ."
    )
    assert not found.done
    assert not page.done
    assert found.reward == page.reward == 0.0
    last = step(episode, call("answer", "the Madrid"))
    assert last.done
    assert last.observation is None
    assert last.reward == 1.0
    with pytest.raises(RuntimeError, match="done"):
        step(episode, call("search", "spain"))


@pytest.mark.parametrize("prompt", ["tags", "none"])
def test_the_gold_turn_of_every_task_answers_right(miniature, prompt):
    source = make_task_source("deep_search", corpus=miniature / "corpus.jsonl", prompt=prompt)
    for split in SPLITS:
        for task in source.sample(split, 50, seed=1):
            result = step(begun(source.make(task)), task.gold)
            assert (result.done, result.reward, result.malformed) == (True, 1.0, False), task.id


def test_a_wrong_answer_ends_the_episode_without_reward(episode):
    result = step(episode, call("answer", "barcelona"))
    assert result.done
    assert result.reward == 0.0
    assert result.info["tool"] == "answer"


def test_nothing_found(episode):
    assert step(episode, call("search", "capital of")).observation == "no results"
    assert step(episode, call("search", "xyzzy")).observation == "no results"
    assert step(episode, call("visit", "spain")).observation == "no page"


@pytest.mark.parametrize(
    "action",
    [
        "",
        "madrid",
        "<answer> madrid</answer>",
        "<think> so</think>",
        "<think> so</think><answer> madrid",
        "<think> so<answer> madrid</answer>",
        "<think> so</think><answer> madrid</search>",
        "<think> so</think><browse> madrid</browse>",
        "<think> so</think><search> spain</search><answer> madrid</answer>",
        "<think> so</think><answer> </answer>",
        "<think> so</think><search></search>",
        "<think> so</think><answer> madrid</answer> and more",
        "<think>a</think><search>x</search><think>b</think><answer>y</answer>",
        "<think>a</think><search>x</search>\n<search>y</search>",
        "<think>a</think></think><search>x</search>",
        "so <think>a</think><search>x</search>",
    ],
)
def test_a_malformed_call_is_told_so_and_the_episode_goes_on(episode, action):
    result = step(episode, action)
    assert result.observation.startswith("malformed call : ")
    assert not result.done
    assert result.reward == 0.0
    assert result.malformed is True
    assert step(episode, call("answer", "madrid")).reward == 1.0


@pytest.mark.parametrize(
    "action",
    [
        "<think> a</think><search> spain</search>",
        "<think>a</think> <search>spain </search><|im_end|>\n",
        "\n<think>\na < b\n</think>\n\n<search>\nspain\n</search>\n",
    ],
)
def test_blanks_and_the_end_token_do_not_matter(action):
    assert parse_action(action) == SearchToolCall("search", "spain")


def test_actions_are_read_as_written(source):
    for task in source.sample("train", 30, 0):
        for action, *_ in source.walkthrough(task, 0).turns:
            thought = action.removeprefix("<think> ").split("</think>")[0]
            assert format_action(thought, parse_action(action)) == action
    with pytest.raises(MalformedCall, match="the visit is empty"):
        parse_action("<think></think><visit> </visit>")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("São Tomé", "sao tome", True),
        ("The  Euro.", "euro", True),
        ("america/new york", "America / New_York", True),
        ("guinea-bissau", "guinea bissau", True),
        ("guinea", "guinea bissau", False),
        ("12", "21", False),
        ("theatre", "atre", False),
        ("東京", "馬鹿", False),
        ("東京", "東京。", True),
        ("москва", "париж", False),
        ("Москва", "МОСКВА", True),
        ("мой", "мои", False),
        ("ガス", "カス", False),
        ("ｶﾞｽ", "ガス", True),
        ("Ａ１２", "a12", True),
        ("Αθήνα", "αθηνα", True),
        ("Straße", "STRASSE", True),
        ("cafe\u0301", "café", True),
        ("Lima\u200b", "lima", True),
        ("-5", "5", False),
        ("\u22125", "-5", True),
        ("about -5", "about 5", False),
        ("3-5", "3 5", True),
        ("3.5", "3 5", False),
        ("3.5.", "3.5", True),
        ("C++", "C", False),
        ("c#", "c", False),
        ("#1", "1", True),
        ("AT&T", "at t", True),
        ("5 °C", "5 c", False),
        ("the", "", False),
        ("the", "a", False),
        ("...", "", True),
        ("...", "。", True),
    ],
)
def test_normalised_exact_match(one, other, same):
    assert (normalise_answer(one) == normalise_answer(other)) is same


def test_a_misspelled_entity_finds_nothing_by_its_relation_words(source):
    """The words of the relation alone would lead to a page about something else."""
    rng = random.Random(0)
    vocabulary = {
        word for document in source.corpus.documents for word in (document.title + " " + document.text).split()
    }
    tried = 0
    for entity, relation in rng.sample(sorted(source.corpus.located), 500):
        letters = list(entity)
        at = rng.randrange(len(letters))
        letters[at] = "q" if letters[at] != "q" else "x"
        misspelled = "".join(letters)
        if vocabulary.isdisjoint(misspelled.split()):
            tried += 1
            assert source.retriever.search(f"{relation} {misspelled}") == ()
    assert tried > 200


def test_an_entity_named_in_full_comes_first(source):
    """But for "najaf", whose words "an najaf" has too once articles are set aside."""
    located = sorted(source.corpus.located)
    missed = [
        entity
        for entity, relation in located
        if source.retriever.search(f"{relation} {entity}")[0].entity != entity
    ]
    assert set(missed) <= {"najaf"}


def test_what_is_found_does_not_follow_from_the_order_of_words_or_of_queries(source):
    assert source.retriever.search("capital france") == source.retriever.search("What is the France capital ?")


def plain_ascii(text):
    """The rule that the shipped policies were trained under, which held for ASCII alone."""
    kept = re.sub(r"[^a-z0-9]+", " ", text.encode("ascii", "ignore").decode().lower()).split()
    return " ".join(word for word in kept if word not in ("a", "an", "the"))


def test_the_miniatures_answers_are_the_same_as_ever(source):
    """Which of its answers equal each other, and under what other spellings, has not changed."""
    answers = {fact.object for document in source.corpus.documents for fact in document.facts}
    assert len(answers) > 2000
    by_old, by_new = {}, {}
    for answer in answers:
        by_old.setdefault(plain_ascii(answer), set()).add(answer)
        by_new.setdefault(normalise_answer(answer), set()).add(answer)
        assert normalise_answer(answer) == normalise_answer(f" The {answer.upper()} .")
    assert sorted(map(sorted, by_old.values())) == sorted(map(sorted, by_new.values()))


@pytest.mark.parametrize(
    "hostile",
    [
        lambda n: " " * n + "x",
        lambda n: "<think>a</think><search>x" + " " * n + "y",
        lambda n: "<think>" * (n // 7),
        lambda n: "</think>" * (n // 8),
        lambda n: "<think>" + "</think><search>x" * (n // 17),
        lambda n: "<think>a</think>" + "<search>x</search>" * (n // 18),
        lambda n: "<think>a</think><search>" + "<" * n,
        lambda n: "<think>a</think><search> x</search>" + "<|im_end|>\n" * (n // 11),
        lambda n: "<think>a</think>" + "\n \t" * (n // 3) + "<answer>",
        lambda n: "<think>" + "\u00a0" * n + "</think>" + "\u00a0" * n + "<answer> y</answer>" + "\u00a0" * n,
        lambda n: "x -." * (n // 4) + "#",
        lambda n: "e\u0301" * (n // 2),
    ],
)
def test_reading_a_turn_takes_time_in_proportion_to_it(episode, hostile):
    """Eight times the text may not take much more than eight times the time; CPU time, the best of some tries."""

    def seconds(length):
        turn = hostile(length)
        best = float("inf")
        for _ in range(5):
            started = time.thread_time()
            for _ in range(2):
                with contextlib.suppress(MalformedCall):
                    parse_action(turn)
                normalise_answer(turn)
                normalise_title(turn)
                words(turn)
            best = min(best, time.thread_time() - started)
        return best

    assert seconds(64_000) < 14 * seconds(8_000) + 0.002


class Refusing:
    """A search service that takes no query."""

    async def search(self, query):
        raise QueryRefused("the search was refused")

    visit = search


def test_a_refused_query_costs_the_policy_its_turn_and_no_more():
    episode = begun(DeepSearchEnvironment(Refusing(), GoldAnswerScore(("madrid",)), syntax_for("none")))
    result = step(episode, call("search", "x"))
    assert (result.observation, result.done, result.info["refused"]) == ("the search was refused", False, True)
    assert step(episode, call("answer", "madrid")).reward == 1.0
