"""Dense search with an encoder that is a table, by numpy and, where it is installed, by faiss."""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from megatron_empg.cli.index import index as index_command
from megatron_empg.environments.deep_search.search import encoder as encoder_module
from megatron_empg.environments.deep_search.search.bm25_index import LONGEST_QUERY
from megatron_empg.environments.deep_search.search.dense import (
    SETTINGS,
    VECTORS,
    DenseIndex,
    DenseTools,
    build_dense,
    verify_vectors,
)
from megatron_empg.environments.deep_search.search.encoder import EncoderSettings, SentenceEncoder
from megatron_empg.environments.deep_search.search.errors import (
    IndexFolderError,
    MissingPackageError,
    SearchError,
)
from megatron_empg.environments.deep_search.search.index_build import build_index
from megatron_empg.environments.deep_search.settings import DeepSearchSettings
from megatron_empg.environments.deep_search.tools import QueryRefused
from megatron_empg.environments.registry import make_task_source
from megatron_empg.environments.settings import read_settings

TOPICS = ("river", "novel", "planet", "metal")
MEANINGS = {"stream": "river", "book": "novel", "world": "planet", "iron": "metal"}


class Table:
    """Looks for four topics; words that no document spells mean them too."""

    name = "table"

    def __init__(self):
        self.calls = 0

    def passages(self, texts):
        self.calls += 1
        rows = []
        for text in texts:
            words = [MEANINGS.get(word, word) for word in text.lower().split()]
            counts = np.array([words.count(topic) for topic in TOPICS], float)
            rows.append((counts + 0.01) / np.linalg.norm(counts + 0.01))
        return np.array(rows, np.float32)

    queries = passages


@pytest.fixture
def folder(tmp_path):
    rows = [{"contents": f"{topic} {number}\n{topic} of many"} for topic in TOPICS for number in range(40)]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    build_index(corpus, tmp_path / "index", progress=lambda line: None)
    return tmp_path / "index"


def quietly(folder, encoder):
    build_dense(folder, encoder, progress=lambda line: None)


def engines():
    """Both, where faiss is there."""
    yield "numpy"
    yield pytest.param("faiss", marks=pytest.mark.skipif(not _has_faiss(), reason="needs faiss-cpu"))


def _has_faiss():
    from importlib.util import find_spec

    return find_spec("faiss") is not None


@pytest.mark.parametrize("engine", engines())
def test_the_nearest_documents_are_found_by_meaning(folder, engine):
    quietly(folder, Table())
    index = DenseIndex(folder, Table(), engine)
    hits = index.search("book", 5)
    assert {hit.title.split()[0] for hit in hits} == {"novel"}
    assert hits[0].score == pytest.approx(1.0, abs=1e-3)
    assert len(index.search("iron stream", 100)) == 100
    tools = DenseTools(index)
    assert asyncio.run(tools.search("world")).startswith("found\n1 planet ")
    assert asyncio.run(tools.visit("River 3")) == "page river 3 : river of many"
    assert asyncio.run(tools.visit("River 99")) == "no page"


def test_comparing_by_blocks_is_comparing_all(folder, monkeypatch):
    monkeypatch.setattr("megatron_empg.environments.deep_search.search.dense.COMPARED", 7)
    quietly(folder, Table())
    index = DenseIndex(folder, Table(), "numpy")
    vectors = np.load(folder / VECTORS).reshape(-1, len(TOPICS))
    products = vectors @ Table().queries(["iron book"])[0]
    hits = index.search("iron book", 20)
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(products)[::-1][:20], rtol=1e-5)
    np.testing.assert_allclose([products[int(hit.id)] for hit in hits], [hit.score for hit in hits], rtol=1e-5)
    assert len({hit.id for hit in hits}) == 20


def test_vectors_that_are_there_stay_and_those_of_another_encoder_are_refused(folder):
    quietly(folder, Table())
    again = Table()
    quietly(folder, again)
    assert again.calls == 0
    other = Table()
    other.name = "another"
    with pytest.raises(IndexFolderError, match="vectors of 'table', not of 'another'"):
        DenseIndex(folder, other, "numpy")
    with pytest.raises(IndexFolderError, match="vectors of 'table'"):
        quietly(folder, other)


def test_vectors_that_are_missing_or_broken_are_refused_by_name(folder):
    with pytest.raises(IndexFolderError, match="has no vectors"):
        DenseIndex(folder, Table(), "numpy")
    quietly(folder, Table())
    whole = (folder / VECTORS).read_bytes()
    (folder / VECTORS).write_bytes(whole[:-1])
    with pytest.raises(IndexFolderError, match=VECTORS):
        DenseIndex(folder, Table(), "numpy")
    (folder / VECTORS).write_bytes(whole)
    for text in ("", "[]", "{}", '{"encoder": "table", "dimension": -1}', '{"encoder": "table", "dimension": 3}'):
        (folder / SETTINGS).write_text(text, encoding="utf-8")
        with pytest.raises(IndexFolderError, match=r"dense\."):
            DenseIndex(folder, Table(), "numpy")


@pytest.mark.parametrize("torn", ["", "{", "[]", "[[" * 100_000, '{"encoder": "table", "dimension": -1}'])
def test_torn_settings_are_unfinished_vectors_which_are_made_again(folder, torn):
    quietly(folder, Table())
    whole = (folder / SETTINGS).read_text(encoding="utf-8")
    (folder / SETTINGS).write_text(torn, encoding="utf-8")
    quietly(folder, Table())
    assert (folder / SETTINGS).read_text(encoding="utf-8") == whole
    assert DenseIndex(folder, Table(), "numpy").search("book", 1)[0].title.startswith("novel")


def test_vectors_cut_off_beside_whole_settings_are_made_again(folder):
    quietly(folder, Table())
    whole = (folder / VECTORS).read_bytes()
    for torn in (whole[:-1], whole[: len(whole) // 2], b""):
        (folder / VECTORS).write_bytes(torn)
        with pytest.raises(IndexFolderError, match="make the vectors again: empg index"):
            DenseIndex(folder, Table(), "numpy")
        quietly(folder, Table())
        assert (folder / VECTORS).read_bytes() == whole
    assert not list(folder.glob("*.writing"))


def test_vectors_are_verified_by_their_checksum(folder):
    verify_vectors(folder)
    build_dense(folder, Table(), lambda line: None)
    verify_vectors(folder)
    whole = (folder / VECTORS).read_bytes()
    (folder / VECTORS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IndexFolderError, match=f"{VECTORS} is not the file that was made"):
        verify_vectors(folder)
    (folder / VECTORS).unlink()
    with pytest.raises(IndexFolderError, match=f"{VECTORS} cannot be read"):
        verify_vectors(folder)


def test_an_encoder_that_gives_nonsense_is_stopped_and_leaves_no_settings(folder):
    class Broken(Table):
        def passages(self, texts):
            return np.full((len(texts), 4), np.nan, np.float32)

    class Short(Table):
        def passages(self, texts):
            return super().passages(texts)[:-1]

    for encoder in (Broken(), Short()):
        with pytest.raises(ValueError, match="the encoder gave"):
            quietly(folder, encoder)
        assert not (folder / SETTINGS).exists()


def test_what_to_install_is_said(folder, monkeypatch, tmp_path):
    quietly(folder, Table())
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingPackageError, match="pip install faiss-cpu"):
        DenseIndex(folder, Table(), "faiss")
    with pytest.raises(SearchError, match=r"holds no model \(no config.json\)"):
        SentenceEncoder(EncoderSettings(path=tmp_path))


def test_bad_settings_and_queries_are_refused(folder):
    quietly(folder, Table())
    with pytest.raises(ValueError, match="allowed: faiss, numpy"):
        DenseIndex(folder, Table(), "annoy")
    with pytest.raises(ValueError, match="allowed: mean, first"):
        read_settings(EncoderSettings, {"path": folder, "pooling": "max"}, "encoder")
    index = DenseIndex(folder, Table(), "numpy")
    with pytest.raises(ValueError, match="top_k"):
        index.search("book", 0)
    with pytest.raises(ValueError, match=f"more than {LONGEST_QUERY}"):
        index.search("x" * 100_000)
    with pytest.raises(QueryRefused, match="100000 characters"):
        asyncio.run(DenseTools(index).search("x" * 100_000))


def test_the_encoder_and_its_engine_are_settings_and_a_bare_path_is_one():
    given = {"questions": {}, "index": "my/index"}
    bare = read_settings(DeepSearchSettings, given | {"encoder": "models/e5"}, "deep_search").encoder
    assert bare == EncoderSettings(path=Path("models/e5"))
    assert (bare.engine, bare.pooling, bare.tokens) == ("faiss", "mean", 256)
    whole = {"path": "models/bge", "engine": "numpy", "pooling": "first", "passage_prefix": "", "query_prefix": ""}
    found = read_settings(DeepSearchSettings, given | {"encoder": whole}, "deep_search").encoder
    assert (found.path, found.engine, found.pooling) == (Path("models/bge"), "numpy", "first")
    with pytest.raises(ValueError, match="allowed: faiss, numpy"):
        read_settings(DeepSearchSettings, given | {"encoder": whole | {"engine": "annoy"}}, "deep_search")


def test_vectors_go_with_whatever_does_not_change_them():
    plain = EncoderSettings(path=Path("models/e5"))
    same = EncoderSettings(path=Path("elsewhere/e5"), engine="numpy", query_prefix="find: ")
    assert same.kind_of_vectors == plain.kind_of_vectors
    for change in ({"pooling": "first"}, {"tokens": 128}, {"passage_prefix": ""}, {"path": Path("models/bge")}):
        assert plain.model_copy(update=change).kind_of_vectors != plain.kind_of_vectors


def test_an_encoder_beside_a_server_is_refused_since_the_server_would_not_use_it():
    given = {"questions": {}, "index": "my/index", "encoder": "models/e5", "search_url": "http://node:8000"}
    with pytest.raises(ValueError, match=r"encoder and search_url are both given.*leave one out"):
        read_settings(DeepSearchSettings, given, "deep_search")


def test_the_command_makes_vectors_and_meets_a_bad_encoder_before_it_builds(tmp_path, monkeypatch):
    app = Typer()
    app.command()(index_command)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"contents": "A\nriver"}) + "\n", encoding="utf-8")
    words = [str(corpus), str(tmp_path / "index"), "--encoder", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, SearchError)
    assert CliRunner().invoke(app, [*words, "--pooling", "max"]).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]

    asked = {}

    def made(settings, device):
        asked.update(settings=settings, device=device)
        return Table()

    monkeypatch.setattr(encoder_module, "SentenceEncoder", made)
    more = ["--pooling", "first", "--passage-prefix", "", "--tokens", "64", "--device", "cuda"]
    assert CliRunner().invoke(app, [*words, *more]).exit_code == 0
    wanted = EncoderSettings(path=tmp_path, pooling="first", passage_prefix="", tokens=64)
    assert asked == {"settings": wanted, "device": "cuda"}
    assert DenseIndex(tmp_path / "index", Table(), "numpy").search("stream", 1)[0].title == "A"


def test_a_search_that_cannot_be_made_is_a_fault_of_settings_or_data(tmp_path):
    """As a task source may raise it, and as the command line tells it in a line."""
    for kind in (SearchError, IndexFolderError, MissingPackageError):
        assert issubclass(kind, ValueError)
    with pytest.raises(ValueError, match="no index at"):
        make_task_source("deep_search", questions={}, index=str(tmp_path / "none"))


def test_a_sentence_encoder_pools_over_the_words_and_not_over_the_padding(tmp_path):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "query:", "passage:", *TOPICS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        tmp_path
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(tmp_path)
    for pooling in ("mean", "first"):
        encoder = SentenceEncoder(EncoderSettings(path=tmp_path, pooling=pooling, tokens=8))
        alone = encoder.passages(["river"])
        beside = encoder.passages(["river", "novel planet metal river novel planet metal river novel planet"])
        np.testing.assert_allclose(np.linalg.norm(beside, axis=1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(alone[0], beside[0], atol=1e-5)
        assert not np.allclose(encoder.queries(["river"]), alone, atol=1e-3)
