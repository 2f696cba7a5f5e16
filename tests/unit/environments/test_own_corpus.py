"""A corpus of one's own: read whatever it holds, or refused by path, line and what is wrong with it."""

import gzip
import json

import pytest

from megatron_empg.environments.deep_search.actions import SearchToolCall, format_action
from megatron_empg.environments.deep_search.corpus import load_corpus
from megatron_empg.environments.registry import make_task_source
from tests.support.acting import begun, step


def line(title="Peru", entity="Peru", kind="country", relation="capital", answer="Lima", **changes):
    row = {
        "title": title,
        "entity": entity,
        "type": kind,
        "facts": [[relation, answer, None]],
        "sentences": [f"The {relation} of {entity} is {answer}."],
    }
    return json.dumps(row | changes, ensure_ascii=False)


def written(path, *lines, encoding="utf-8", end="\n"):
    path.write_bytes(end.join([*lines, ""]).encode(encoding))
    return path


@pytest.fixture
def own(tmp_path):
    return tmp_path / "own.jsonl"


def test_a_corpus_works_by_itself(own):
    """Nothing of the miniature's is asked of it, and its pages are found under the titles that it shows."""
    source = make_task_source(
        "deep_search", corpus=written(own, line(), line("Bolivia", "Bolivia", answer="Sucre"))
    )
    assert {task.id for task in source.tasks("train")} == {"Peru|capital", "Bolivia|capital"}
    task = source.sample("train", 1, seed=0)[0]
    title = task.payload["entity"]
    episode = begun(source.make(task))
    assert title in step(episode, format_action("so", SearchToolCall("search", f"capital {title}"))).observation
    for spelled in (title, title.lower(), f"  {title.upper()} "):
        page = step(episode, format_action("so", SearchToolCall("visit", spelled))).observation
        assert page.startswith(f"page : The capital of {title}")
    assert step(episode, format_action("so", SearchToolCall("answer", task.payload["answer"]))).reward == 1.0
    assert source.walkthrough(task, 0).turns[-1].observation is None
    with pytest.raises(ValueError, match="the corpus has none"):
        source.sample("test_ood", 1, seed=0)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"held_out_relations": ["lowest point"]}, "held_out_relations names 'lowest point'; allowed: capital"),
        ({"longer_from": ["city"]}, "longer_from names 'city'; allowed: country"),
        ({"composed_from": ["planet"]}, "composed_from names 'planet'; allowed: country"),
        ({"held_out": 3}, r"splits\.held_out: there is no such setting; allowed: fewest_hops, most_hops"),
        ({"fewest_hops": 5}, "splits: fewest_hops 5, most_hops 4: they must ascend and lie between 1 and 20"),
        ({"most_hops": 21}, "must ascend and lie between 1 and 20"),
        ({"fewest_hops": 0}, "must ascend and lie between 1 and 20"),
        ({"train_hops": "many"}, r"splits\.train_hops: .*valid integer"),
        ({"longer_from": "city"}, r"splits\.longer_from: .*valid tuple"),
    ],
)
def test_what_is_asked_for_must_be_there(own, splits, message):
    with pytest.raises(ValueError, match=message):
        make_task_source("deep_search", corpus=written(own, line()), splits=splits)


@pytest.mark.parametrize(
    ("chances", "message"),
    [
        ({"stop_late": 0.5}, r"searcher_settings\.stop_late: there is no such setting; allowed: stop_early"),
        ({"stop_early": "often"}, r"searcher_settings\.stop_early: .*valid number"),
        ({"stop_early": 1.5}, "searcher stop_early is 1.5; a chance lies between 0 and 1"),
    ],
)
def test_a_chance_that_is_none_is_refused_as_a_fault_of_settings(own, chances, message):
    with pytest.raises(ValueError, match=message):
        make_task_source("deep_search", corpus=written(own, line()), searcher_settings=chances)


def test_lines_end_at_newlines_alone(own):
    """A byte-order mark, other ends of lines inside texts, and those of Windows do no harm."""
    lines = (line(answer="one\u2028two"), line("a", "a", answer="three\u0085four"), "", line("b", "b"))
    for encoding, end in (("utf-8", "\n"), ("utf-8-sig", "\n"), ("utf-8", "\r\n")):
        corpus = load_corpus(written(own, *lines, encoding=encoding, end=end))
        assert [document.title for document in corpus.documents] == ["Peru", "a", "b"]
        assert corpus.documents[0].facts[0].object == "one\u2028two"


def test_other_scripts_are_told_apart(own):
    answers = {"日本": "東京", "中国": "北京", "Россия": "Москва", "Украина": "Киев"}
    source = make_task_source(
        "deep_search", corpus=written(own, *(line(e, e, answer=a) for e, a in answers.items()))
    )
    for task in source.tasks("train"):
        for answer in answers.values():
            reward = step(begun(source.make(task)), format_action("so", SearchToolCall("answer", answer))).reward
            assert reward == (answer == task.payload["answer"])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (line("PERU", "other"), "titled 'Peru' and 'PERU'"),
        (line("\uff30eru ", "other"), "titled 'Peru' and '\uff30eru '"),
        (line("x", "x", answer="。"), "the capital '。' of the document 'x' holds no word"),
        (line("x", "x", answer="<b>"), "the capital '<b>' of the document 'x' holds < or >"),
        (line("a < b", "x"), "the title 'a < b' .* holds < or >"),
        (line("x", "x", kind=7), "line 2: .*type is 7, not a text"),
        (line(None, "x"), "line 2: .*title is None"),
        (line("x", "x", sentences="one"), "line 2: .*sentences is 'one', not a list"),
        (line("x", "x", sentences=[3]), "line 2: .*a sentence is 3"),
        (line("x", "x", facts=[["capital", 7, None]]), "line 2: .*a fact's object is 7"),
        (line("x", "x", facts=[["capital", "Lima"]]), "line 2: .*a fact is .*not .relation, object"),
        (line("x", "x", facts=[]), "line 2: .*one sentence a fact"),
        ('{"title": "x"}', "line 2: .*has no 'sentences'"),
        ("[1, 2]", r"line 2: .*holds \[1, 2\], not an object"),
        ('{"title": "x', "line 2: it is not JSON"),
        (json.dumps(json.loads(line("x", "x")) | {"title": "\ud800"}), "line 2: not a document .*surrogates"),
    ],
)
def test_what_is_wrong_is_named(own, other, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_corpus(written(own, line(), other))
    assert str(own) in str(caught.value)


def test_other_encodings_and_empty_files_are_named(own):
    with pytest.raises(ValueError, match=r"own\.jsonl, line 2: it is not UTF-8 .*convert"):
        load_corpus(written(own, line(), line("Perú", "Perú"), encoding="latin-1"))
    with pytest.raises(ValueError, match=r"own\.jsonl, line 1: it is not UTF-8"):
        load_corpus(written(own, line(), encoding="utf-16"))
    for lines in ((), ("", "  ")):
        with pytest.raises(ValueError, match=r"own\.jsonl: holds no documents"):
            load_corpus(written(own, *lines))


def test_a_compressed_corpus_reads_the_same(own, tmp_path):
    plain = load_corpus(written(own, line(), "", line("Bolivia", "Bolivia", answer="Sucre")))
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + own.read_bytes()))
    assert load_corpus(packed).documents == plain.documents
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"packed\.jsonl\.gz.*cut off or damaged"):
        load_corpus(packed)


def test_a_corpus_that_changes_is_read_anew(own):
    first = make_task_source("deep_search", corpus=str(written(own, line())))
    assert make_task_source("deep_search", corpus=str(own)).corpus is first.corpus
    again = make_task_source("deep_search", corpus=str(written(own, line("Bolivia", "Bolivia", answer="Sucre"))))
    assert [page.title for page in again.corpus.documents] == ["Bolivia"]
