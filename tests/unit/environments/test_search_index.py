"""An index on disk finds exactly what BM25 finds, whatever the documents hold, and refuses what is no corpus."""

import asyncio
import errno
import fcntl
import gzip
import hashlib
import json
import math
import re
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from megatron_empg.cli.index import index as index_command
from megatron_empg.environments.deep_search import json_lines
from megatron_empg.environments.deep_search.search import arrays, max_score, observations, postings_build
from megatron_empg.environments.deep_search.search.bm25 import Bm25
from megatron_empg.environments.deep_search.search.bm25_index import LONGEST_QUERY, MOST_RESULTS, SearchIndex
from megatron_empg.environments.deep_search.search.corpus_lines import CorpusFile, Passage
from megatron_empg.environments.deep_search.search.errors import CorpusError, IndexFolderError, MissingPackageError
from megatron_empg.environments.deep_search.search.index_build import build_index
from megatron_empg.environments.deep_search.search.index_tools import IndexTools
from megatron_empg.environments.deep_search.search.manifest import MANIFEST, IndexManifest, verify_files
from megatron_empg.environments.deep_search.search.observations import snippet
from megatron_empg.environments.deep_search.search.passages import TitlePage
from megatron_empg.environments.deep_search.search.result_limits import ResultLimits
from megatron_empg.environments.deep_search.search.top_k import DamagedPostingsError, Postings, best_documents
from megatron_empg.environments.deep_search.search.words import WordRules, WordSplitter
from megatron_empg.environments.deep_search.text import cut
from megatron_empg.environments.deep_search.tools import QueryRefused

SPLIT = WordSplitter(WordRules())


def written(folder, rows, name="corpus.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def built(folder, rows, **settings):
    build_index(written(folder, rows), folder / "index", progress=lambda line: None, **settings)
    return SearchIndex.open(folder / "index")


def page(title, text, **more):
    return {"contents": f"{title}\n{text}", **more}


def zipf_rows(rng, documents, vocabulary=300, longest=40):
    """Random pages with many equal ones among them."""
    weights = 1 / np.arange(1, vocabulary + 1)
    rows = []
    for number in range(documents):
        words = rng.choice(vocabulary, rng.integers(0, longest), p=weights / weights.sum())
        rows.append(page(f"page {number % 7}", " ".join(f"w{word}" for word in words)))
    return [*rows, *rows[: documents // 4]]


def by_the_formula(rows, bm25, query):
    """Score of every document in float64, from the definition alone."""
    documents = [Counter(SPLIT(row["contents"])) for row in rows]
    lengths = [sum(document.values()) for document in documents]
    mean = sum(lengths) / len(lengths)
    scores = np.zeros(len(rows))
    for word, said in Counter(SPLIT(query)).items():
        having = sum(word in document for document in documents)
        idf = math.log(1 + (len(rows) - having + 0.5) / (having + 0.5))
        for number, document in enumerate(documents):
            if word in document:
                norm = bm25.k1 * (1 - bm25.b + bm25.b * lengths[number] / mean)
                scores[number] += said * idf * document[word] / (document[word] + norm)
    return scores


@pytest.mark.parametrize(("seed", "bm25"), [(0, Bm25()), (1, Bm25(1.5, 0.75)), (2, Bm25(1.2, 0.0))])
def test_results_are_those_of_the_formula_and_equal_ones_come_in_order(tmp_path, monkeypatch, seed, bm25):
    monkeypatch.setattr(postings_build, "PORTION", 700)
    monkeypatch.setattr(postings_build, "MERGED", 900)
    rng = np.random.default_rng(seed)
    rows = zipf_rows(rng, 500)
    index = built(tmp_path, rows, bm25=bm25)
    for _ in range(40):
        query = " ".join(f"w{word}" for word in rng.zipf(1.3, rng.integers(1, 9)) % 320)
        expected = by_the_formula(rows, bm25, query)
        top_k = int(rng.choice([1, 3, 10, 100]))
        numbers, scores = index.best(*index.query_words(query), top_k)
        found = min(top_k, int(np.count_nonzero(expected)))
        np.testing.assert_allclose(scores, np.sort(expected)[::-1][:found], rtol=1e-6)
        np.testing.assert_allclose(scores, expected[numbers], rtol=1e-6)
        in_order = np.lexsort((numbers, -scores))
        np.testing.assert_array_equal(in_order, np.arange(found))
        for number in numbers:
            earlier = [other for other in range(number) if rows[other] == rows[number]]
            assert set(earlier) <= set(numbers.tolist())


@pytest.mark.parametrize("seed", range(4))
def test_skipping_changes_nothing_over_many_windows(tmp_path, seed):
    """Lists made by hand over more document numbers than a window has, against adding everything up."""
    rng = np.random.default_rng(seed)
    documents, width = 5 * max_score.WINDOW + 17, 6
    lists, impacts = [], []
    for share in (0.9, 0.5, 0.05, 0.01, 0.001, 0.0005):
        held = np.flatnonzero(rng.random(documents) < share)
        lists.append(held.astype(np.int32))
        best = -math.log(share + 0.05)
        impacts.append((rng.integers(1, 2000, len(held)) / 2000 * best).astype(np.float32))
    impacts = [np.maximum(np.round(values * 2.0**20), 1) / 2.0**20 for values in impacts]
    lengths = np.array([len(held) for held in lists])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    firsts, lasts = postings_build._blocks(lengths)
    joined, scores = np.concatenate(lists), np.concatenate(impacts).astype(np.float32)
    block_starts = np.concatenate([[0], np.cumsum(-(-lengths // postings_build.BLOCK))])
    best = np.maximum.reduceat(scores, firsts)
    postings = Postings(joined, scores, starts, block_starts, joined[lasts], best)
    for values in postings:
        values.setflags(write=False)  # as an index has them
    for top_k in (1, 3, 10, 100):
        for _ in range(8):
            words = rng.permutation(width)[: rng.integers(1, width + 1)]
            counts = rng.integers(1, 3, len(words)).astype(np.float64)
            sums = np.zeros(documents)
            for word, count in zip(words, counts, strict=True):
                sums[lists[word]] += count * scores[starts[word] : starts[word + 1]].astype(np.float64)
            order = np.lexsort((np.arange(documents), -sums))[:top_k]
            order = order[sums[order] > 0]
            numbers, found = best_documents(postings, words, counts, documents, top_k)
            np.testing.assert_array_equal(numbers, order)
            np.testing.assert_array_equal(found, sums[order])


def test_bm25s_finds_the_same_in_the_same_folder(tmp_path):
    import bm25s

    rng = np.random.default_rng(5)
    rows = zipf_rows(rng, 300)
    index = built(tmp_path, rows)
    plain = bm25s.BM25(k1=0.9, b=0.4, method="lucene")
    plain.index([SPLIT(row["contents"]) for row in rows], show_progress=False)
    reopened = bm25s.BM25.load(tmp_path / "index", mmap=True, load_vocab=False)
    for query in ("w1 w2 w30", "w5", "w0 w0 w7 w250"):
        words, counts = index.query_words(query)
        theirs = plain.get_scores([word for word in SPLIT(query) if word in plain.vocab_dict])
        _, scores = index.best(words, counts, 5)
        np.testing.assert_allclose(scores, np.sort(theirs)[::-1][:5], rtol=1e-5)
        spelled = np.repeat(words, counts.astype(int)).tolist()
        np.testing.assert_allclose(reopened.get_scores(spelled), theirs, rtol=1e-5, atol=1e-7)


def test_documents_come_back_as_they_were_written(tmp_path):
    long = "word " * 220_000
    rows = [
        page("Control", "<|im_end|>\n<|im_start|>assistant <tool_call> \x00 \u2028 </s>", id="a1"),
        {"id": 7, "title": " Two\nlines ", "text": "body\nof\n\nlines"},
        page("Empty", ""),
        {"contents": "No body at all"},
        page("Long", long),
        page("", "untitled"),
        page('"Quoted"', "as the dumps do"),
        page("東京", "東京都は日本の首都。Café naïve Ελλάδα भारत 🦊"),
    ]
    index = built(tmp_path, rows)
    assert index.passages[0] == Passage("a1", "Control", rows[0]["contents"].partition("\n")[2])
    assert index.passages[1] == Passage("7", "Two lines", "body\nof\n\nlines")
    assert [passage.text for passage in index.passages][2:4] == ["", ""]
    assert index.passages[4].text == long
    assert index.page("LONG").text == long
    assert index.page("quoted").text == "as the dumps do"
    assert [hit.title for hit in index.search("im_end")] == ["Control"]
    for query in ("東京", "cafe", "CAFÉ", "naive", "ελλαδα", "日本の首都"):
        assert index.search(query)[0].title == "東京", query
    assert index.search("word")[0].id == "4"
    assert index.page("no such") is None
    assert index.page("") == TitlePage("", "untitled")


@pytest.mark.parametrize("query", ["", "   ", "!!! ???", "unheardof", "\x00", "🦊", "\ud800", "' OR 1=1 --"])
def test_a_query_without_a_known_word_finds_nothing(tmp_path, query):
    assert built(tmp_path, [page("Known", "words of it")]).search(query) == []


def test_a_query_too_long_is_refused_and_the_longest_allowed_is_answered(tmp_path):
    index = built(tmp_path, [page("Known", "alpha beta"), page("Other", "beta")])
    with pytest.raises(ValueError, match=f"more than {LONGEST_QUERY}"):
        index.search("a" * 100_000)
    assert index.search(("alpha " * LONGEST_QUERY)[:LONGEST_QUERY])[0].title == "Known"
    for top_k in (0, -1, MOST_RESULTS + 1):
        with pytest.raises(ValueError, match="top_k"):
            index.search("alpha", top_k)
    assert len(index.search("beta", MOST_RESULTS)) == 2


def test_a_page_is_the_run_of_passages_of_its_title_and_the_first_page_wins(tmp_path):
    rows = [page("A", "one"), page("a", "two"), page("B", "three"), page("A", "another"), page("B", "last")]
    index = built(tmp_path, rows)
    assert index.page("A").text == "one\ntwo"
    assert index.page("ｂ").text == "three"
    assert (index.manifest.titles, index.manifest.continued, index.manifest.repeated) == (2, 1, 2)


def test_stop_words_are_left_out_of_documents_and_queries(tmp_path):
    index = built(tmp_path, [page("X", "the cat and the hat"), page("Y", "cat")], rules=WordRules("english"))
    assert index.search("the and") == []
    assert len(index.search("the cat")) == 2
    with pytest.raises(ValueError, match="allowed: none, english"):
        WordRules("german")


def test_words_are_folded_and_cut():
    assert SPLIT("Don't STOP — Ｆｕｌｌ ﬁne Straße İstanbul") == [
        *("don", "t", "stop", "full", "fine", "strasse", "istanbul")
    ]
    assert SPLIT("x" * 1000) == ["x" * 64]
    assert SPLIT("snake_case 3.5") == ["snake", "case", "3", "5"]
    assert SPLIT("東京タワー") == list("東京タワー")


def test_a_compressed_corpus_is_the_same_index(tmp_path):
    rows = [page("A", "one two"), page("B", "two three")]
    plain = written(tmp_path, rows)
    packed = tmp_path / "corpus.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    first = build_index(plain, tmp_path / "first", progress=lambda line: None)
    second = build_index(packed, tmp_path / "second", progress=lambda line: None)
    assert first.source_sha256 != second.source_sha256
    for path in (tmp_path / "first").iterdir():
        if path.name != MANIFEST:
            assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


BAD_LINES = {
    "not JSON": b"{oops",
    "not UTF-8": b'{"contents": "caf\xe9"}',
    "not an object": b"[1, 2]",
    '"id" is': b'{"id": [1], "contents": "A\\nb"}',
    '"contents" is 5': b'{"contents": 5}',
    '"title" is None': b'{"title": null, "text": "x"}',
    '"text" is': b'{"title": "A", "text": ["x"]}',
    'no "contents", nor': b'{"title": "A"}',
    "half a surrogate": b'{"contents": "A\\n\\ud800"}',
    "nested too deeply": b"[" * 200_000,
}


@pytest.mark.parametrize("fault", BAD_LINES)
def test_a_bad_line_is_named_and_nothing_is_left(tmp_path, fault):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"contents": "A\\nb"}\n\n' + BAD_LINES[fault] + b"\n")
    with pytest.raises(CorpusError, match=f"{re.escape(str(path))}, line 3: .*{re.escape(fault)}"):
        build_index(path, tmp_path / "index", progress=lambda line: None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_a_file_that_is_cut_off_empty_or_of_another_kind_is_refused(tmp_path, monkeypatch):
    packed = gzip.compress(b'{"contents": "A\\nb"}\n' * 50_000)
    path = tmp_path / "corpus.jsonl.gz"
    for broken in (packed[: len(packed) // 2], packed[:-4], packed[:-8] + bytes(8)):
        path.write_bytes(broken)
        with pytest.raises(CorpusError, match=r"gz[:,] .*the compressed data is cut off or damaged here"):
            list(CorpusFile(path))
    path.write_bytes(packed[:100] + b"\x00\xff" * 50 + packed[200:])
    with pytest.raises(CorpusError, match=re.escape(str(path))):
        list(CorpusFile(path))
    path.write_bytes(b"\n \n")
    with pytest.raises(CorpusError, match="holds no documents"):
        build_index(path, tmp_path / "index", progress=lambda line: None)
    with pytest.raises(CorpusError, match="no corpus at"):
        CorpusFile(tmp_path / "missing")
    assert json_lines.LONGEST_LINE >= 16 << 20
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 1000)
    path.write_bytes(b"x" * 5000)
    with pytest.raises(CorpusError, match="line 1: it has over 1000 bytes"):
        list(CorpusFile(path))


def test_an_index_that_is_there_stays_and_another_is_refused(tmp_path):
    rows = [page("A", "one")]
    built(tmp_path, rows)
    told = []
    before = (tmp_path / "index" / MANIFEST).stat().st_mtime_ns
    build_index(tmp_path / "corpus.jsonl", tmp_path / "index", progress=told.append)
    assert "there already" in told[0]
    assert (tmp_path / "index" / MANIFEST).stat().st_mtime_ns == before
    with pytest.raises(IndexFolderError, match=r"not with .*'k1': 2.0"):
        build_index(tmp_path / "corpus.jsonl", tmp_path / "index", bm25=Bm25(2.0))
    written(tmp_path, [*rows, page("B", "two")])
    with pytest.raises(IndexFolderError, match="an index of another file"):
        build_index(tmp_path / "corpus.jsonl", tmp_path / "index")
    (tmp_path / "mine").mkdir()
    with pytest.raises(IndexFolderError, match="exists and is not an index"):
        build_index(tmp_path / "corpus.jsonl", tmp_path / "mine")


def test_what_an_interrupted_making_left_is_no_hindrance(tmp_path):
    (tmp_path / "index.writing" / "runs").mkdir(parents=True)
    (tmp_path / "index.writing" / "documents.txt").write_text("half", encoding="utf-8")
    assert built(tmp_path, [page("A", "one")]).search("one")
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.jsonl", "index"}


def test_two_processes_do_not_write_one_index(tmp_path):
    corpus = written(tmp_path, [page("A", "one")])
    with (tmp_path / "index.writing.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(IndexFolderError, match="another process is writing"):
            build_index(corpus, tmp_path / "index", progress=lambda line: None)


def test_a_missing_numba_is_told_before_a_document_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, max_score.__name__, None)
    monkeypatch.setattr(CorpusFile, "__iter__", lambda corpus: pytest.fail("the corpus is read"))
    corpus = written(tmp_path, [page("A", "one")])
    with pytest.raises(MissingPackageError, match="needs numba: pip install numba"):
        build_index(corpus, tmp_path / "index", progress=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(self, values):
        raise OSError(errno.ENOSPC, "No space left on device")

    corpus = written(tmp_path, [page("A", "one")])
    monkeypatch.setattr(arrays.ArrayWriter, "append", full)
    with pytest.raises(IndexFolderError, match=f"{tmp_path / 'index.writing'}: no space left.*another disk"):
        build_index(corpus, tmp_path / "index", progress=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_a_folder_that_is_no_whole_index_is_refused_by_name(tmp_path):
    with pytest.raises(IndexFolderError, match=r"no index at .*empg index CORPUS"):
        SearchIndex.open(tmp_path / "nothing")
    built(tmp_path, [page("A", "one two"), page("B", "two")])
    folder = tmp_path / "index"
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".npy", ".txt"))
    assert len(names) == 14
    for name in names:
        content = (folder / name).read_bytes()
        for broken in (content[: len(content) - 3], b""):
            (folder / name).write_bytes(broken)
            with pytest.raises(IndexFolderError, match=name):
                SearchIndex.open(folder)
        (folder / name).unlink()
        with pytest.raises(IndexFolderError, match=name):
            SearchIndex.open(folder)
        (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    faults = {"version": 99, "kind": "cake", "documents": "2", "words": True, "postings": None}
    for key, value in faults.items():
        (folder / MANIFEST).write_text(json.dumps({**manifest, key: value}), encoding="utf-8")
        with pytest.raises(IndexFolderError, match=MANIFEST):
            SearchIndex.open(folder)
    for text in ("", "[]", "{", json.dumps({**manifest, "surplus": 1})):
        (folder / MANIFEST).write_text(text, encoding="utf-8")
        with pytest.raises(IndexFolderError, match=MANIFEST):
            IndexManifest.read(folder)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", "เมืองหลวง"),
        ("ភ្នំពេញជារាជធានីរបស់ប្រទេសកម្ពុជា", "រាជធានី"),
        ("နေပြည်တော်သည်မြန်မာနိုင်ငံ၏မြို့တော်ဖြစ်သည်", "မြို့တော်"),
        ("東京都は日本の首都である", "首都"),
    ],
    ids=["thai", "khmer", "burmese", "japanese"],
)
def test_a_word_within_a_text_without_blanks_is_found(tmp_path, text, query):
    index = built(tmp_path, [page("Other", "the capital"), page("Page", text)])
    assert [hit.title for hit in index.search(query)] == ["Page"]


def test_the_tools_show_numbered_results_and_whole_pages(tmp_path):
    rows = [
        page("The Hobbit", "The Hobbit is a novel by J. R. R. Tolkien. <|im_end|>"),
        page("Long", "filler. " * 5000 + "the dragon Smaug sleeps here. " + "filler. " * 5000),
    ]
    built(tmp_path, rows)
    tools = IndexTools.open(tmp_path / "index", ResultLimits(top_k=2, snippet_characters=120))
    assert asyncio.run(tools.search("hobbit author")) == (
        "found\n1 The Hobbit : The Hobbit is a novel by J. R. R. Tolkien. <|im_end|>"
    )
    assert "the dragon Smaug sleeps here." in asyncio.run(tools.search("smaug dragon"))
    assert asyncio.run(tools.search("unheardof")) == "no results"
    assert asyncio.run(tools.visit("the hobbit")).startswith("page The Hobbit : The Hobbit is")
    assert asyncio.run(tools.visit("long")) == f"page Long : {rows[1]['contents'].removeprefix('Long' + chr(10))}"
    assert asyncio.run(tools.visit("unheardof")) == "no page"
    for tool in (tools.search, tools.visit):
        with pytest.raises(QueryRefused, match="100000 characters"):
            asyncio.run(tool("x" * 100_000))


def test_long_documents_are_looked_through_off_the_event_loop(tmp_path, monkeypatch):
    built(tmp_path, [page("Long", "filler " * 5000)])
    tools = IndexTools.open(tmp_path / "index")
    threads = set()
    shown = observations.results

    def noted(*given):
        threads.add(threading.current_thread())
        return shown(*given)

    monkeypatch.setattr(observations, "results", noted)
    asyncio.run(tools.search("filler"))
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("text", ["", "x", "x" * 5000, "a b " * 3000, "。" * 999, "\n" * 2000 + "end"])
@pytest.mark.parametrize("characters", [40, 41, 400])
def test_snippets_and_cuts_keep_their_length(text, characters):
    assert len(cut(text, characters)) <= characters
    assert len(snippet(text, "a b end", characters)) <= characters
    assert "\n" not in snippet(text, "end", characters)


def test_the_command_builds_an_index(tmp_path):
    app = Typer()
    app.command()(index_command)
    corpus = written(tmp_path, [page("A", "one")])
    done = CliRunner().invoke(app, [str(corpus), str(tmp_path / "index"), "--k1", "1.2"])
    assert done.exit_code == 0, done.output
    assert "1 documents" in done.output
    assert IndexManifest.read(tmp_path / "index").k1 == 1.2
    for bad in (["--k1", "0"], ["--b", "1.5"], ["--stop-words", "german"]):
        assert CliRunner().invoke(app, [str(corpus), str(tmp_path / "other"), *bad]).exit_code == 2


# Damage


DAMAGE = """
import sys
from pathlib import Path
import numpy as np
from megatron_empg.environments.deep_search.search.bm25_index import SearchIndex
from megatron_empg.environments.deep_search.search.errors import IndexFolderError

folder, name, header = Path(sys.argv[1]), sys.argv[2], 128
whole = (folder / name).read_bytes()
rng = np.random.default_rng(7)
for attempt in range(12):
    content = bytearray(whole)
    begin = int(rng.integers(header, max(header + 1, len(content) - 512)))
    end = min(len(content), begin + 512)
    content[begin:end] = rng.bytes(end - begin)
    (folder / name).write_bytes(content)
    try:
        index = SearchIndex.open(folder)
        for number in range(0, 300, 6):
            index.search(" ".join(f"w{word}" for word in range(number, number + 6)), 3)
            index.page(f"page {number % 7}")
    except IndexFolderError as error:
        print(name in str(error))
    else:
        print("found nothing")
"""


@pytest.mark.parametrize(
    ("name", "always_found"),
    [
        ("indptr.csc.index.npy", True),
        ("blocks.starts.npy", True),
        ("documents.offsets.npy", True),
        ("words.offsets.npy", True),
        ("titles.numbers.npy", True),
        ("words.numbers.npy", True),
        ("indices.csc.index.npy", False),
        ("blocks.last.npy", False),
        ("blocks.best.npy", False),
        ("data.csc.index.npy", False),
    ],
)
def test_a_damaged_index_ends_no_process_and_is_named(tmp_path, name, always_found):
    """In a process of its own, which a search that reads or writes out of bounds would end."""
    built(tmp_path, zipf_rows(np.random.default_rng(3), 600))
    done = subprocess.run(
        [sys.executable, "-c", DAMAGE, str(tmp_path / "index"), name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.split("\n")) - {""}
    assert found == {"True"} if always_found else found <= {"True", "found nothing"}


def test_a_search_writes_nothing_before_its_window():
    """In a list that is not in order a number below the window would be written before the sums."""
    documents = np.arange(3 * max_score.WINDOW, dtype=np.int32)
    documents[2 * max_score.WINDOW + 5] = 3
    count = len(documents)
    starts, block_starts = np.array([0, count]), np.array([0, count // postings_build.BLOCK])
    firsts, lasts = postings_build._blocks(np.array([count]))
    scores = np.ones(count, np.float32)
    postings = Postings(documents, scores, starts, block_starts, documents[lasts], scores[firsts])
    for values in postings:
        values.setflags(write=False)  # as an index has them
    with pytest.raises(DamagedPostingsError, match=r"indices\.csc\.index\.npy is damaged"):
        best_documents(postings, np.zeros(1, np.int64), np.ones(1), count, 3)


def test_damage_in_a_document_is_named(tmp_path):
    built(tmp_path, [page("A", "one"), page("B", "two")])
    path = tmp_path / "index" / "documents.txt"
    whole = path.read_bytes()
    for broken in (whole.replace(b"two", b"\xfftw"), whole.replace(b"\n", b" ")):
        path.write_bytes(broken)
        with pytest.raises(IndexFolderError, match=r"documents\.txt is damaged at document 1"):
            SearchIndex.open(tmp_path / "index").search("two")


def test_every_file_of_an_index_has_a_checksum_that_verifying_compares(tmp_path):
    built(tmp_path, [page("A", "one two"), page("B", "two")])
    folder = tmp_path / "index"
    assert set(IndexManifest.read(folder).files) == {path.name for path in folder.iterdir()} - {MANIFEST}
    assert verify_files(folder) == IndexManifest.read(folder)
    for name, digest in IndexManifest.read(folder).files.items():
        whole = (folder / name).read_bytes()
        assert digest == hashlib.sha256(whole).hexdigest()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(IndexFolderError, match=re.escape(f"{name} is not the file that was built")):
            verify_files(folder)
        (folder / name).unlink()
        with pytest.raises(IndexFolderError, match=re.escape(f"{name} cannot be read")):
            verify_files(folder)
        (folder / name).write_bytes(whole)
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for files in ({"../secret": "0" * 64}, {"words.txt": "0"}, {"words.txt": 3}, []):
        (folder / MANIFEST).write_text(json.dumps({**content, "files": files}), encoding="utf-8")
        with pytest.raises(IndexFolderError, match="files"):
            verify_files(folder)


def test_the_command_verifies_an_index(tmp_path):
    app = Typer()
    app.command()(index_command)
    built(tmp_path, [page("A", "one")])
    done = CliRunner().invoke(app, ["--verify", str(tmp_path / "index")])
    assert (done.exit_code, "every file is as it was built; 1 documents" in done.output) == (0, True)
    (tmp_path / "index" / "words.txt").write_bytes(b"ane")
    done = CliRunner().invoke(app, ["--verify", str(tmp_path / "index")])
    assert isinstance(done.exception, IndexFolderError)


def test_what_cannot_be_written_is_named(tmp_path):
    corpus = written(tmp_path, [page("A", "one")])
    with pytest.raises(IndexFolderError, match=r"index\.writing cannot be written: file exists .*corpus\.jsonl"):
        build_index(corpus, corpus / "index", progress=lambda line: None)
    with pytest.raises(IndexFolderError, match=r"cannot be written: file name too long"):
        build_index(corpus, tmp_path / ("x" * 300), progress=lambda line: None)
