"""Published question sets: read in every form, refused with the place of the fault, drawn in balance."""

import gzip
import io
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megatron_empg.environments.deep_search import json_lines
from megatron_empg.environments.deep_search.data import json_stream, question_files, record_files
from megatron_empg.environments.deep_search.data.json_stream import JsonFault, JsonStream
from megatron_empg.environments.deep_search.data.mixture import allot, interleaved
from megatron_empg.environments.deep_search.data.published_formats import DATASETS, SkippedRecords, read_questions
from megatron_empg.environments.deep_search.data.published_question import PublishedQuestion, QuestionDataError
from megatron_empg.environments.deep_search.data.published_questions import PublishedQuestions
from megatron_empg.environments.deep_search.data.question_files import (
    QuestionFiles,
    QuestionSource,
    load_source,
)
from megatron_empg.environments.deep_search.data.question_store import QuestionStore
from megatron_empg.environments.settings import data_paths, read_settings

FIXTURES = Path(__file__).parent / "fixtures"
PUBLISHED = {
    "hotpotqa": "hotpot_dev_fullwiki_v1.json",
    "2wikimultihopqa": "2wiki_dev.json",
    "musique": "musique_full_v1.0_dev.jsonl",
    "bamboogle": "bamboogle.csv",
    "webwalkerqa": "webwalkerqa_main.jsonl",
    "nq": "NQ-open.dev.jsonl",
    "triviaqa": "triviaqa_web_dev.json",
    "jsonl": "own_questions.jsonl",
}


def read(dataset, path, skipped=None):
    return list(read_questions(dataset, path, skipped if skipped is not None else SkippedRecords()))


def written(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def own(path, count, **more):
    records = [
        {"id": str(n), "question": f"Question {n}?", "answers": [f"answer {n}"], **more} for n in range(count)
    ]
    return written(path, *records)


def test_hotpotqa_is_read_and_an_answer_without_a_word_is_left_out():
    skipped = SkippedRecords()
    bridge, comparison, height = read("hotpotqa", FIXTURES / PUBLISHED["hotpotqa"], skipped)
    assert bridge == PublishedQuestion(
        "hotpotqa/5a0000000000000000000001",
        "Who wrote the novel on which the film Salt Harbour is based?",
        ("Orla Venn",),
        "bridge",
        2,
        "hotpotqa",
    )
    assert (comparison.type, comparison.answers) == ("comparison", ("yes",))
    assert height.answers == ("1,204 m",)
    assert skipped == SkippedRecords(wordless=1)


def test_2wikimultihopqa_takes_the_other_names_of_an_answer():
    source = QuestionSource(
        dataset="2wikimultihopqa",
        path=FIXTURES / "2wiki_dev.json",
        aliases=FIXTURES / "2wiki_id_aliases.json",
    )
    first, second, third = load_source(source).questions
    assert first.answers == ("Norhaven", "North Haven", "Norhafn", "Norhavener")
    assert [(q.type, q.hops) for q in (first, second, third)] == [
        ("compositional", 2),
        ("bridge_comparison", 4),
        ("comparison", 2),
    ]
    assert read("2wikimultihopqa", FIXTURES / "2wiki_dev.json")[0].answers == ("Norhaven",)


def test_musique_leaves_out_what_cannot_be_answered():
    skipped = SkippedRecords()
    found = read("musique", FIXTURES / PUBLISHED["musique"], skipped)
    assert [(q.id, q.type, q.hops) for q in found] == [
        ("musique/2hop__101_202", "2hop", 2),
        ("musique/3hop1__5_6_7", "3hop1", 3),
        ("musique/4hop3__1_2_3_4", "4hop3", 4),
    ]
    assert found[0].answers == ("Tove Arn", "T. Arn", "Tove K. Arn")
    assert skipped == SkippedRecords(unanswerable=1)


def test_bamboogle_is_read_from_the_authors_sheet_and_from_json(tmp_path):
    first, second, third = read("bamboogle", FIXTURES / PUBLISHED["bamboogle"])
    assert first.answers == ("Ida Marsh", "Ida K. Marsh")
    assert second.text == 'When did the author of "Salt Harbour" die?'
    assert third.answers == ("Oda Lind",)
    assert [q.id for q in (first, second, third)] == ["bamboogle/1", "bamboogle/2", "bamboogle/3"]
    plain = tmp_path / "plain.csv"
    plain.write_text(f"Question,Answer\n{first.text},Ida Marsh\n", encoding="utf-8")
    in_json = written(tmp_path / "test.jsonl", {"Question": first.text, "Answer": "Ida Marsh"})
    assert read("bamboogle", plain) == read("bamboogle", in_json)
    assert first.hops == 2


def test_webwalkerqa_is_read_with_and_without_capitals():
    found = read("webwalkerqa", FIXTURES / PUBLISHED["webwalkerqa"])
    assert [q.type for q in found] == ["multi_source_medium", "single_source_easy", "single_source_hard"]
    assert found[1].answers == ("林奥达",)
    assert all(q.hops is None for q in found)


def test_natural_questions_and_triviaqa_have_several_answers():
    assert [q.answers for q in read("nq", FIXTURES / PUBLISHED["nq"])] == [("Ida Marsh",), ("412 km", "256 miles")]
    river, arches = read("triviaqa", FIXTURES / PUBLISHED["triviaqa"])
    assert river.id == "triviaqa/tc_1"
    assert river.answers == ("Ore", "Ore (river)", "River Ore", "The Ore", "ore river", "river ore", "ore")
    assert arches.answers == ("7", "seven")


def test_the_form_that_toolkits_share_is_read_for_any_dataset():
    questions = read("nq", FIXTURES / "nq_test_shared.jsonl")
    assert [q.id for q in questions] == ["nq/test_0", "nq/test_1"]
    assert questions[1].answers == ("412 km", "256 miles")
    assert read("musique", FIXTURES / "musique_dev_shared.jsonl")[0].hops == 2
    shared = read("hotpotqa", FIXTURES / "hotpotqa_dev_shared.jsonl")[0]
    assert (shared.type, shared.hops) == ("comparison", 2)


def test_own_questions_may_leave_out_type_and_hops():
    found = read("jsonl", FIXTURES / PUBLISHED["jsonl"])
    assert [(q.type, q.hops) for q in found] == [("founder", 1), ("all", 2), ("all", None)]


@pytest.mark.parametrize("dataset", DATASETS)
def test_compressed_and_marked_files_read_the_same(dataset, tmp_path):
    plain = FIXTURES / PUBLISHED[dataset]
    marked = tmp_path / f"marked_{plain.name}"
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    packed = tmp_path / f"{plain.name}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    windows = tmp_path / f"windows_{plain.name}"
    windows.write_bytes(plain.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert read(dataset, marked) == read(dataset, packed) == read(dataset, windows) == read(dataset, plain)


@pytest.mark.parametrize(
    ("dataset", "content", "complaint"),
    [
        (
            "nq",
            '{"question": "a?", "answer": ["b"]}\n{"question": "c?", "answer": [3]}\n',
            'line 2: field "answer"',
        ),
        ("nq", '{"question": "a?", "answer": []}', "at least one text that is not blank; found a list of 0"),
        ("nq", '{"question": "a?", "answer": null}', "a list of texts; found null"),
        (
            "nq",
            '{"question": 7, "answer": ["b"]}',
            'field "question" must be a text that is not blank; found a number',
        ),
        ("nq", '{"question": "  ", "answer": ["b"]}', 'field "question" must be a text that is not blank'),
        ("nq", '{"question": "a\\ud800", "answer": ["b"]}', "lone surrogates"),
        ("nq", '{"question": "a?", "answer": ["b"]', "line 1: it is not JSON"),
        ("nq", "[1, 2]", "a question is an object; found a number (1)"),
        ("nq", "", "there is nothing in it"),
        ("nq", " \n\n", "there is nothing in it"),
        (
            "hotpotqa",
            '[{"_id": "x", "question": "a?", "type": "bridge"}]',
            '(to line 1): field "answer" must be a text',
        ),
        ("hotpotqa", '[{"_id": "x", "question": "a?", "answer": "b", "type": "bridge"}, {"_id"', "after record 1"),
        ("hotpotqa", '[{"_id": "x"}', 'record 1 (to line 1): field "type"'),
        ("musique", '{"id": "9", "question": "a?", "answer": "b"}', 'an id of the form "2hop__'),
        (
            "triviaqa",
            '{"Data": [{"Question": "a?", "QuestionId": "1", "Answer": "b"}]}',
            'field "Answer" must be an object',
        ),
        (
            "triviaqa",
            '{"Data": [{"QuestionId": "1", "Answer": {"Value": ""}}]}',
            "record 1 (to line 1), inside Answer",
        ),
        (
            "jsonl",
            '{"id": "1", "question": "a?", "answers": ["b"], "hops": true}',
            'field "hops" must be a whole number',
        ),
        (
            "jsonl",
            '{"id": "1", "question": "a?", "answers": ["b"], "hops": 1e9}',
            'field "hops" must be a whole number',
        ),
        ("jsonl", "[" * 100_000, "it is not JSON"),
        ("jsonl", '{"a":' * 100_000, "it is not JSON"),
        ("jsonl", '{"id": "1", "question": ' + "9" * 5000 + "}", "it is not JSON"),
    ],
)
def test_a_broken_file_is_refused_with_the_place_and_the_field(tmp_path, dataset, content, complaint):
    path = tmp_path / "broken.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(QuestionDataError) as caught:
        read(dataset, path)
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 500


def test_broken_bytes_are_refused_with_their_place(tmp_path):
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"question": "a?", "answer": ["b"]}\n{"question": "caf\xe9?", "answer": ["b"]}\n')
    with pytest.raises(QuestionDataError, match="line 2: it is not UTF-8"):
        read("nq", latin)
    sheet = tmp_path / "latin.csv"
    sheet.write_bytes(b"Question,Answer\ncaf\xe9,b\n")
    with pytest.raises(QuestionDataError, match="not UTF-8"):
        read("bamboogle", sheet)
    wide = tmp_path / "wide.csv"
    wide.write_text("Question,Answer\nwhy, oh why,b\n", encoding="utf-8")
    with pytest.raises(QuestionDataError, match="line 2: it has 3 cells; the header has 2"):
        read("bamboogle", wide)
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(gzip.compress((FIXTURES / PUBLISHED["hotpotqa"]).read_bytes())[:-200])
    with pytest.raises(QuestionDataError, match="cut off or damaged"):
        read("hotpotqa", cut)


def test_texts_and_lines_have_a_greatest_length(tmp_path, monkeypatch):
    long = written(tmp_path / "long.jsonl", {"question": "a" * (record_files.MAX_TEXT + 1), "answer": ["b"]})
    with pytest.raises(QuestionDataError, match=r'field "question" must be at most 20000 characters long'):
        read("nq", long)
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 1000)
    with pytest.raises(QuestionDataError, match="line 1: it has over 1000 bytes"):
        read("nq", long)


def test_ids_are_unique_and_repeated_records_count_once(tmp_path):
    record = {"id": "1", "question": "a?", "answers": ["b"]}
    source = QuestionSource(dataset="jsonl", path=written(tmp_path / "twice.jsonl", record, record))
    loaded = load_source(source)
    assert len(loaded.questions) == 1
    assert loaded.skipped == SkippedRecords(repeated=1)
    clash = written(tmp_path / "clash.jsonl", record, {**record, "answers": ["c"]})
    with pytest.raises(QuestionDataError, match='id "jsonl/1" stands for two different questions'):
        load_source(QuestionSource(dataset="jsonl", path=clash))


def test_a_file_without_a_question_to_ask_is_refused(tmp_path):
    path = written(tmp_path / "none.jsonl", {"id": "1", "question": "a?", "answers": ["?!"]})
    with pytest.raises(QuestionDataError, match=r"no question in it can be asked .*wordless=1"):
        load_source(QuestionSource(dataset="jsonl", path=path))


def test_too_many_types_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(question_files, "MAX_TYPES", 5)
    records = [{"id": str(n), "question": "a?", "answers": ["b"], "type": str(n)} for n in range(6)]
    with pytest.raises(QuestionDataError, match="over 5 types"):
        load_source(QuestionSource(dataset="jsonl", path=written(tmp_path / "types.jsonl", *records)))


def test_two_files_of_one_dataset_keep_their_ids_apart(tmp_path):
    first, second = own(tmp_path / "a.jsonl", 2), own(tmp_path / "b.jsonl", 2)
    sources = [{"dataset": "jsonl", "path": str(first)}, {"dataset": "jsonl", "path": str(second)}]
    found = PublishedQuestions(QuestionFiles.model_validate({"train": sources})).all("train")
    assert [q.id for q in found] == ["jsonl/0", "jsonl/1", "jsonl.2/0", "jsonl.2/1"]
    sources[0]["name"] = "mine"
    found = PublishedQuestions(QuestionFiles.model_validate({"train": sources})).all("train")
    assert [q.dataset for q in found] == ["mine", "mine", "jsonl", "jsonl"]
    assert found[-1].id == "jsonl/1"
    assert [q.id for q in found[1:3]] == ["mine/1", "jsonl/0"]


def test_a_limit_takes_the_same_questions_from_the_whole_file(tmp_path):
    path = own(tmp_path / "many.jsonl", 1000)
    few = [q.id for q in load_source(QuestionSource(dataset="jsonl", path=path, limit=50)).questions]
    assert few == [q.id for q in load_source(QuestionSource(dataset="jsonl", path=path, limit=50)).questions]
    assert len(few) == 50
    numbers = [int(name.split("/")[1]) for name in few]
    assert numbers == sorted(numbers)
    assert 300 < sum(numbers) / 50 < 700


def mixed(tmp_path, split="train", **weights):
    sources = []
    for name, weight in weights.items():
        path = own(tmp_path / f"{name}.jsonl", 400)
        sources.append({"dataset": "jsonl", "name": name, "path": str(path), "weight": weight})
    return PublishedQuestions(QuestionFiles.model_validate({split: sources}))


def test_a_mixture_follows_its_weights_exactly_on_average(tmp_path):
    questions = mixed(tmp_path, a=5.0, b=3.0, c=2.0)
    total: Counter[str] = Counter()
    for seed in range(300):
        drawn = questions.sample("train", 7, seed)
        count = Counter(q.dataset for q in drawn)
        assert len({q.id for q in drawn}) == 7
        for name, share in {"a": 3.5, "b": 2.1, "c": 1.4}.items():
            assert math.floor(share) <= count[name] <= math.ceil(share)
        total += count
    assert total["a"] / 2100 == pytest.approx(0.5, abs=0.01)
    assert total["b"] / 2100 == pytest.approx(0.3, abs=0.01)


def test_a_sample_follows_from_its_seed(tmp_path):
    one, other = mixed(tmp_path, a=1.0, b=1.0), mixed(tmp_path, a=1.0, b=1.0)
    assert one.sample("train", 20, 3) == other.sample("train", 20, 3)
    assert one.sample("train", 20, 3) != one.sample("train", 20, 4)


def test_without_weights_training_counts_questions_and_evaluation_counts_files(tmp_path):
    big, small = own(tmp_path / "big.jsonl", 900), own(tmp_path / "small.jsonl", 100)
    sources = [
        {"dataset": "jsonl", "name": "big", "path": str(big)},
        {"dataset": "jsonl", "name": "small", "path": str(small)},
    ]
    questions = PublishedQuestions(QuestionFiles.model_validate({"train": sources, "test_id": sources}))
    assert Counter(q.dataset for q in questions.sample("train", 100, 0)) == {"big": 90, "small": 10}
    assert Counter(q.dataset for q in questions.sample("test_id", 100, 0)) == {"big": 50, "small": 50}
    assert Counter(q.dataset for q in questions.fixed("test_id", 100)) == {"big": 50, "small": 50}


def test_more_draws_than_questions_go_round_before_one_comes_a_third_time(tmp_path):
    questions = PublishedQuestions(
        QuestionFiles.model_validate(
            {"train": [{"dataset": "jsonl", "path": str(own(tmp_path / "few.jsonl", 10))}]}
        )
    )
    counts = Counter(q.id for q in questions.sample("train", 25, 0))
    assert len(counts) == 10
    assert set(counts.values()) == {2, 3}


def balanced_set(tmp_path):
    sizes = {("2hop", 2): 300, ("3hop1", 3): 60, ("4hop1", 4): 5}
    records = []
    for (name, hops), size in sizes.items():
        for n in range(size):
            record = {"id": f"{name}-{n}", "question": f"{name} {n}?", "answers": ["a"]}
            records.append({**record, "type": name, "hops": hops})
    path = written(tmp_path / "uneven.jsonl", *records)
    return PublishedQuestions(
        QuestionFiles.model_validate({"test_ood": [{"dataset": "jsonl", "path": str(path)}]})
    )


def test_evaluation_is_balanced_over_hops_and_types_as_far_as_they_last(tmp_path):
    questions = balanced_set(tmp_path)
    drawn = questions.sample("test_ood", 60, seed=1)
    counts = Counter(q.hops for q in drawn)
    assert counts[4] == 5
    assert abs(counts[2] - counts[3]) <= 1
    assert len({q.id for q in drawn}) == 60
    fixed = questions.fixed("test_ood", 12)
    assert Counter(q.type for q in fixed) == {"2hop": 4, "3hop1": 4, "4hop1": 4}


def test_a_shorter_fixed_set_is_a_prefix_of_a_longer_one(tmp_path):
    questions = balanced_set(tmp_path)
    whole = questions.fixed("test_ood", 365)
    assert len({q.id for q in whole}) == 365
    for count in (0, 1, 17, 200):
        assert questions.fixed("test_ood", count) == whole[:count]
    with pytest.raises(ValueError, match="366 test_ood questions were asked for; the files have 365"):
        questions.fixed("test_ood", 366)


def test_a_question_more_leaves_the_others_of_a_fixed_set_in_their_order(tmp_path):
    def fixed(count):
        path = own(tmp_path / f"{count}.jsonl", count)
        files = QuestionFiles.model_validate({"test_id": [{"dataset": "jsonl", "path": str(path)}]})
        return [q.id for q in PublishedQuestions(files).fixed("test_id", count)]

    assert [name for name in fixed(101) if name != "jsonl/100"] == fixed(100)


def test_a_split_is_read_when_it_is_first_asked_for(tmp_path):
    path = own(tmp_path / "train.jsonl", 3)
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{", encoding="utf-8")
    files = {
        "train": [{"dataset": "jsonl", "path": str(path)}],
        "test_id": [{"dataset": "jsonl", "path": str(broken)}],
    }
    questions = PublishedQuestions(QuestionFiles.model_validate(files))
    assert len(questions.all("train")) == 3
    with pytest.raises(QuestionDataError):
        questions.all("test_id")
    with pytest.raises(ValueError, match=r"questions\.test_ood names no file"):
        questions.sample("test_ood", 1, 0)


def test_questions_asked_in_training_are_told_of_a_test_split(tmp_path, caplog):
    train = written(tmp_path / "train.jsonl", {"id": "1", "question": "Who was the first?", "answers": ["a"]})
    test = written(
        tmp_path / "test.jsonl",
        {"id": "1", "question": "who was the FIRST", "answers": ["a"]},
        {"id": "2", "question": "who was the second", "answers": ["a"]},
    )
    files = {
        "train": [{"dataset": "jsonl", "path": str(train)}],
        "test_id": [{"dataset": "jsonl", "path": str(test)}],
    }
    told = "questions.test_id: 1 of 2 questions are asked in training too, word for word"
    for order in (("train", "test_id"), ("test_id", "train")):
        caplog.clear()
        questions = PublishedQuestions(QuestionFiles.model_validate(files))
        for split in (*order, *order):
            questions.all(split)
        assert [record.message for record in caplog.records] == [told]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"train": [{"dataset": "hotpot", "path": "x"}]}, "hotpotqa"),
        ({"train": [{"dataset": "nq", "path": "x", "weight": 0.0}]}, "greater than 0"),
        ({"train": [{"dataset": "nq", "path": "x", "weight": math.nan}]}, "finite"),
        ({"train": [{"dataset": "nq", "path": "x", "weight": 1e308}]}, "less than or equal to 1000000"),
        (
            {"train": [{"dataset": "nq", "path": "x", "wieght": 2.0}]},
            "allowed: aliases, dataset, limit, name, path, weight",
        ),
        ({"train": [{"dataset": "nq", "path": "x", "limit": 0}]}, "greater than or equal to 1"),
        ({"train": [{"dataset": "nq", "path": "x", "share": 1}]}, "share"),
        ({"train": [{"dataset": "nq", "path": "x", "aliases": "y"}]}, "aliases are a file of 2wikimultihopqa"),
        ({"train": [{"dataset": "nq", "path": "x", "name": "a/b"}]}, "pattern"),
        ({"test": []}, "there is no such setting; allowed: test_id, test_ood, train"),
        (
            {"train": [{"dataset": "nq", "path": "x", "weight": 1.0}, {"dataset": "nq", "path": "y"}]},
            "train: either every file has a weight or none",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(given, complaint):
    with pytest.raises(ValueError, match="questions") as caught:
        read_settings(QuestionFiles, given, "questions")
    assert complaint in str(caught.value)


def test_a_file_that_is_not_there_is_named_at_the_start(tmp_path):
    files = QuestionFiles.model_validate(
        {"test_ood": [{"dataset": "nq", "path": str(tmp_path / "nowhere.jsonl")}]}
    )
    with pytest.raises(FileNotFoundError, match=r"questions\.test_ood: there is no file .*nowhere\.jsonl"):
        PublishedQuestions(files)


def test_a_runs_identity_holds_every_file_of_questions(tmp_path):
    path = own(tmp_path / "q.jsonl", 1)
    files = QuestionFiles.model_validate({"train": [{"dataset": "jsonl", "path": str(path)}]})
    assert data_paths(files) == {"train.0.path": path}


def test_a_store_gives_back_what_it_was_given():
    store = QuestionStore("d")
    questions = [
        PublishedQuestion(f"d/{n}", f"Frage {n} „ß“ 🙂\n", ("ja", '"'), "k", n % 3 or None, "d") for n in range(9)
    ]
    for question in questions:
        store.append(question)
    assert list(store) == questions
    assert store[-1] == questions[-1]
    assert store[2:5] == questions[2:5]
    assert list(store.picked([4, 0])) == [questions[4], questions[0]]
    with pytest.raises(IndexError):
        store[9]


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(0, 200), st.randoms(use_true_random=False)
)
def test_allotted_shares_add_up_and_stay_within_one_of_the_weight(weights, count, rng):
    shares = allot(weights, count, rng)
    assert sum(shares) == count
    for weight, share in zip(weights, shares, strict=True):
        assert abs(share - count * weight / sum(weights)) < 1 + 1e-6


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 30)), min_size=1, max_size=6))
def test_interleaved_groups_are_used_up_exactly(groups):
    weights, sizes = zip(*groups, strict=True)
    taken = Counter(interleaved(weights, sizes))
    assert all(taken[number] == size for number, size in enumerate(sizes))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("dataset", ["hotpotqa", "2wikimultihopqa", "triviaqa"])
def test_an_array_reads_the_same_in_pieces(dataset, chunk, monkeypatch):
    path = FIXTURES / PUBLISHED[dataset]
    whole = read(dataset, path)
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    assert read(dataset, path) == whole


@FUZZ
@given(items=st.lists(JSON, max_size=5), chunk=st.integers(1, 9), indent=st.none() | st.integers(0, 2))
def test_any_array_is_streamed_as_the_standard_library_reads_it(items, chunk, indent, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    text = json.dumps(items, indent=indent)
    stream = JsonStream(io.StringIO(text))
    assert json.dumps(list(stream.items())) == json.dumps(json.loads(text))
    stream.end()
    assert stream.line == 1 + text.count("\n")
    under = JsonStream(io.StringIO(json.dumps({"Version": 1.0, "Data": items, "Domain": [1]}, indent=indent)))
    assert json.dumps(list(under.items_under("Data"))) == json.dumps(items)
    under.end()


@pytest.mark.parametrize("text", ["[1", "[1,", "[1,]", "[1 2]", "[}", "[1]]", '["a', "{}", ""])
@pytest.mark.parametrize("chunk", [1, 100])
def test_an_array_that_is_none_is_refused(text, chunk, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)

    def read_all():
        stream = JsonStream(io.StringIO(text))
        list(stream.items())
        stream.end()

    with pytest.raises(JsonFault):
        read_all()


def test_an_item_has_a_greatest_length(monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 16)
    monkeypatch.setattr(json_stream, "MAX_ITEM", 100)
    with pytest.raises(JsonFault, match="an item has over 100 characters"):
        list(JsonStream(io.StringIO('["' + "a" * 1000 + '"]')).items())


def refused_or_sound(dataset, path):
    """Reading ends with sound questions or with the one error that names the file."""
    message = ""
    try:
        found = read(dataset, path)
    except QuestionDataError as error:
        found, message = [], str(error)
        message.encode()
    assert str(path) in (message or str(path))
    store = QuestionStore(dataset)
    for question in found:
        assert question.text.strip()
        assert all(answer.strip() for answer in question.answers)
        assert question.answers
        store.append(question)


def forms(dataset):
    path = FIXTURES / PUBLISHED[dataset]
    if path.suffix == ".csv":
        return [{"Question": "a?", "Answer": "b", "Answer 2": "c"}]
    text = path.read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines()]
    return whole["Data"] if isinstance(whole, dict) else whole


@pytest.mark.parametrize("dataset", DATASETS)
@FUZZ
@given(data=st.data())
def test_records_of_wrong_types_never_get_through(dataset, data, tmp_path):
    record = dict(data.draw(st.sampled_from(forms(dataset))))
    if data.draw(st.booleans()):
        record = {"id": "x", "question": "a?", "golden_answers": ["b"], "metadata": {"type": "t"}}
    for key in data.draw(st.lists(st.sampled_from(sorted(record)), max_size=3)):
        record[key] = data.draw(JSON)
    layout = data.draw(st.sampled_from(["lines", "array", "Data"]))
    text = json.dumps({"lines": record, "array": [record], "Data": {"Data": [record]}}[layout])
    path = tmp_path / "fuzzed.json"
    path.write_text(text, encoding="utf-8")
    refused_or_sound(dataset, path)


@pytest.mark.parametrize("dataset", DATASETS)
@FUZZ
@given(data=st.data())
def test_damaged_bytes_never_get_through(dataset, data, tmp_path):
    original = FIXTURES / PUBLISHED[dataset]
    content = bytearray(original.read_bytes())
    if data.draw(st.booleans()):
        content = bytearray(gzip.compress(bytes(content), mtime=0))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"damaged{original.suffix}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    refused_or_sound(dataset, path)


@FUZZ
@given(content=st.binary(max_size=300), suffix=st.sampled_from(["json", "jsonl", "csv", "csv.gz"]))
@example(content=b"\x1f\x8b", suffix="json")
@example(content=b"\xef\xbb\xbf", suffix="csv")
@example(content=b'"', suffix="csv")
@example(content=b"Question,Answer\na\x00b,c", suffix="csv")
def test_any_bytes_are_refused_or_sound(content, suffix, tmp_path):
    path = tmp_path / f"any.{suffix}"
    path.write_bytes(content)
    for dataset in DATASETS:
        refused_or_sound(dataset, path)


def test_a_copy_elsewhere_reads_the_same(tmp_path):
    copy = tmp_path / "renamed.txt"
    shutil.copy(FIXTURES / PUBLISHED["hotpotqa"], copy)
    assert read("hotpotqa", copy) == read("hotpotqa", FIXTURES / PUBLISHED["hotpotqa"])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("blanks", ["\n" * 100_000, " " * 100_000, " \t\n" * 50_000])
def test_blanks_before_the_first_record_are_any_number(tmp_path, blanks, packed):
    record = {"id": "a", "question": "q?", "answers": ["b"]}
    bodies = {"jsonl": json.dumps(record), "json": json.dumps([record])}
    for name, body in bodies.items():
        content = (blanks + body).encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if packed else content)
        assert [question.text for question in read_questions("jsonl", path, SkippedRecords())] == ["q?"]
    path.write_bytes((blanks + "\n{").encode())
    with pytest.raises(QuestionDataError, match=f"line {blanks.count(chr(10)) + 2}"):
        list(read_questions("jsonl", path, SkippedRecords()))
    path.write_text(blanks, encoding="utf-8")
    with pytest.raises(QuestionDataError, match="there is nothing in it"):
        list(read_questions("jsonl", path, SkippedRecords()))
    table = tmp_path / "b.csv"
    table.write_text(blanks + "\nQuestion,Answer\nq?,b\n", encoding="utf-8")
    assert [question.text for question in read_questions("bamboogle", table, SkippedRecords())] == ["q?"]


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([f"answer {number}" for number in range(2001)], "at most 2000 answers .* this one has 2001"),
        ([f"{number} " + "x" * 19_000 for number in range(11)], "200000 characters .* has 11 of 2090"),
    ],
)
def test_a_question_of_more_answers_than_can_be_compared_is_refused(tmp_path, answers, says):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"id": "a", "question": "q", "answers": answers}), encoding="utf-8")
    with pytest.raises(QuestionDataError, match=f"line 1: .*{says}"):
        list(read_questions("jsonl", path, SkippedRecords()))
    path.write_text(json.dumps({"id": "a", "question": "q", "answers": answers[:-1]}), encoding="utf-8")
    assert len(next(read_questions("jsonl", path, SkippedRecords())).answers) == len(answers) - 1
