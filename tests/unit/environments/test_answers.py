"""Answers against several gold answers: exact match, F1 and reward, in the project's form and the published."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_empg.environments.deep_search import answers
from megatron_empg.environments.deep_search.answers import AnswerMatch, exact, f1, published_form, score, verdict
from megatron_empg.environments.deep_search.scoring import GoldAnswerScore
from megatron_empg.environments.deep_search.search.words import WordRules, WordSplitter


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("The  Beatles!", "beatles"),
        ("U.S.", "us"),
        ("Jean-Paul", "jeanpaul"),
        ("an apple a day", "apple day"),
        ("3.5", "35"),
        ("Café – “Zoé”", "café – “zoé”"),
        ("the", ""),
        ("theory", "theory"),
    ],
)
def test_the_published_form_is_that_of_the_official_scripts(text, form):
    assert published_form(text) == form


@pytest.mark.parametrize(
    ("answer", "gold", "project", "published"),
    [
        ("the beatles", "The Beatles.", True, True),
        ("Zoe", "Zoé", True, False),
        ("35", "3.5", False, True),
        ("5", "-5", False, True),
        ("US", "U.S.", False, True),
        ("jean paul", "Jean-Paul", True, False),
        ("“Salt Harbour”", "Salt Harbour", True, False),
        ("２０１４", "2014", True, False),
        ("The The", "the the", True, False),
        ("???", "!!!", False, False),
        ("", "a", False, False),
    ],
)
def test_the_two_forms_differ_where_they_say_so(answer, gold, project, published):
    assert exact(answer, [gold]) is project
    assert exact(answer, [gold], "published") is published


def test_any_gold_answer_counts_and_the_best_one():
    golds = ["412 km", "256 miles", "about 412 km long"]
    assert score("256 Miles", golds) == AnswerMatch(True, 1.0)
    assert score("412 km long", golds) == AnswerMatch(False, pytest.approx(6 / 7))
    assert score("nothing of it", golds) == AnswerMatch(False, 0.0)


def test_f1_is_the_harmonic_mean_over_words():
    assert f1("Ida Marsh of Norhaven", ["Ida Marsh"]) == pytest.approx(2 / 3)
    assert f1("marsh marsh marsh", ["ida marsh"]) == pytest.approx(2 / 5)


@pytest.mark.parametrize("form", ["project", "published"])
@pytest.mark.parametrize(
    ("answer", "gold"), [("yes it is", "yes"), ("no", "no one"), ("yes", "no"), ("noanswer", "no answer")]
)
def test_a_part_of_a_yes_or_no_earns_nothing(answer, gold, form):
    assert f1(answer, [gold], form) == 0.0
    assert f1(gold, [gold], form) == 1.0


def test_scripts_without_blanks_are_compared_letter_by_letter():
    assert f1("北京大学", ["北京"]) == pytest.approx(2 / 3)
    assert f1("โรงเรียน", ["โรงเรียน"]) == 1.0
    assert f1("서울 대학교", ["서울"]) == pytest.approx(2 / 3)
    assert f1("北京大学", ["北京"], "published") == 0.0


def test_search_and_answers_know_the_same_scripts_without_blanks():
    for text in ("กรุงเทพ", "ភ្នំពេញ", "မြန်မာ", "ລາວ", "東京ガ"):
        letters = WordSplitter(WordRules())(text)
        assert letters == list("".join(letters))
        assert f1(letters[0], [text]) == pytest.approx(2 / (1 + len(letters)))


def test_a_long_answer_is_counted_once_for_hundreds_of_gold_answers(monkeypatch):
    counted = []
    plain = answers._tokens
    monkeypatch.setattr(answers, "_tokens", lambda *given: counted.append(given[0]) or plain(*given))
    long = "many words " * 5000
    assert score(long, [f"gold {number}" for number in range(300)]).f1 == 0.0
    assert sum(len(text) > 1000 for text in counted) == 1


def test_no_gold_answer_is_an_error():
    with pytest.raises(ValueError, match="at least one gold answer"):
        score("a", [])


def test_what_an_answer_earns():
    partly, fully = score("Ida Marsh of Norhaven", ["Ida Marsh"]), score("ida marsh", ["Ida Marsh"])
    assert (verdict(partly, "exact").reward, verdict(partly, "exact").success) == (0.0, False)
    assert (verdict(partly, "f1").reward, verdict(partly, "f1").success) == (pytest.approx(2 / 3), False)
    assert (verdict(fully, "exact").reward, verdict(fully, "exact").success) == (1.0, True)
    assert (verdict(fully, "f1").reward, verdict(fully, "f1").success) == (1.0, True)


@given(
    st.text(max_size=60),
    st.lists(st.text(max_size=30), min_size=1, max_size=4),
    st.sampled_from(["project", "published"]),
)
def test_a_score_lies_between_nothing_and_an_exact_match(answer, golds, form):
    found = score(answer, golds, form)
    assert 0.0 <= found.f1 <= 1.0 + 1e-12
    if found.exact:
        assert found.f1 == 1.0
    assert found == score(answer, [*reversed(golds)], form)


@pytest.mark.parametrize(("words", "aside"), [(10, False), (30_000, True)])
def test_a_long_comparison_is_no_work_for_the_event_loop(monkeypatch, words, aside):
    threads = set()
    normal = answers._normal

    def noted(*given):
        threads.add(threading.current_thread())
        return normal(*given)

    monkeypatch.setattr(answers, "_normal", noted)
    answer, golds = "x " * words, ("x", "y")
    found = asyncio.run(GoldAnswerScore(golds, "f1").verdict(answer))
    assert found.score == answers.score(answer, golds) == AnswerMatch(False, 2 / (words + 1))
    assert (threads == {threading.main_thread()}) is not aside
