"""`slurm/prepare.sh` against a local server: fetched, checked and gone on with, whatever breaks in between."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from megatron_empg.environments.deep_search.search.manifest import VERSION
from megatron_empg.prepare import deepsearch, disk
from megatron_empg.prepare.checksums import Checksum
from megatron_empg.prepare.costs import Bandwidth
from megatron_empg.prepare.deepsearch import PreparationOptions, prepare
from megatron_empg.prepare.download import Download, FileToFetch
from megatron_empg.prepare.errors import PrepareError, SourceUnavailable
from megatron_empg.prepare.hub import Hub
from megatron_empg.prepare.manifest import PreparedFolder, read_prepared
from megatron_empg.prepare.places import HubPlace, UrlPlace, file_name, read_place, safe_name, shown
from megatron_empg.prepare.run import alone
from megatron_empg.prepare.sources import SHIPPED, read_sources
from megatron_empg.prepare.web import endpoint, new_client
from tests.support.archives import tarred, zipped
from tests.support.file_server import COMMIT, FileServer, file_server

ROOT = Path(__file__).parents[3]
CONTENT = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MODEL = "Own/Tiny-Instruct"
TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with file_server() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield found


def fetch(server: FileServer, folder: Path, path: str = "/data.bin", **known: Any) -> str:
    """One file, by `Download`; without pauses between attempts."""
    said: list[str] = []
    with new_client(2) as client:
        download = Download(client, say=said.append, pause=lambda seconds: None)
        return download.fetch(FileToFetch(f"{server.url}{path}", folder / "data.bin", **known))


def known() -> dict[str, Any]:
    return {"size": len(CONTENT), "checksum": Checksum("sha256", SHA256)}


def assert_whole(folder: Path) -> None:
    assert (folder / "data.bin").read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == ["data.bin"], "no part is left"


def test_a_file_is_fetched_whole_and_leaves_no_part(server: FileServer, tmp_path: Path) -> None:
    server.files["/data.bin"] = CONTENT
    assert fetch(server, tmp_path) == SHA256
    assert_whole(tmp_path)


@pytest.mark.parametrize("given", [{}, known()], ids=["nothing known", "size and checksum known"])
def test_a_cut_connection_goes_on_where_it_was(server: FileServer, tmp_path: Path, given: dict[str, Any]) -> None:
    server.files["/data.bin"] = CONTENT
    server.cut_after["/data.bin"] = [100_000, 50_000, 0, 7]
    assert fetch(server, tmp_path, **given) == SHA256
    assert_whole(tmp_path)
    ranges = [headers.get("range") for headers in server.asked("/data.bin")]
    assert ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-", "bytes=150007-"]


def test_a_server_without_ranges_is_asked_from_the_beginning(server: FileServer, tmp_path: Path) -> None:
    server.files["/data.bin"] = CONTENT
    server.ranges = False
    server.cut_after["/data.bin"] = [100_000]
    assert fetch(server, tmp_path, **known()) == SHA256
    assert_whole(tmp_path)


def test_a_file_that_changed_between_two_fetches_is_not_glued_together(server: FileServer, tmp_path: Path) -> None:
    other = CONTENT[::-1]
    server.files["/data.bin"] = CONTENT
    server.cut_after["/data.bin"] = [100_000] + [0] * 20
    with pytest.raises(SourceUnavailable, match="did not answer in 8 attempts"):
        fetch(server, tmp_path)
    assert (tmp_path / "data.bin.part").stat().st_size == 100_000
    server.files["/data.bin"] = other
    server.cut_after.clear()
    assert fetch(server, tmp_path) == hashlib.sha256(other).hexdigest()


def test_a_part_of_another_place_is_not_gone_on_with(server: FileServer, tmp_path: Path) -> None:
    server.files |= {"/data.bin": CONTENT, "/old.bin": CONTENT[::-1]}
    server.cut_after["/old.bin"] = [100_000] + [0] * 20
    with pytest.raises(SourceUnavailable):
        fetch(server, tmp_path, "/old.bin", size=len(CONTENT))
    assert fetch(server, tmp_path) == SHA256


def test_a_part_longer_than_the_file_is_thrown_away(server: FileServer, tmp_path: Path) -> None:
    server.files["/data.bin"] = CONTENT
    (tmp_path / "data.bin.part").write_bytes(CONTENT * 2)
    note = {"url": f"{server.url}/data.bin", "version": "", "total": None}
    (tmp_path / "data.bin.part.json").write_text(json.dumps(note), encoding="utf-8")
    assert fetch(server, tmp_path, checksum=Checksum("sha256", SHA256)) == SHA256
    assert_whole(tmp_path)


def test_a_part_that_is_whole_already_is_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    """A kill between the last byte and the renaming."""
    server.files["/data.bin"] = CONTENT
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    note = {"url": f"{server.url}/data.bin", "version": '"x"', "total": len(CONTENT)}
    (tmp_path / "data.bin.part.json").write_text(json.dumps(note), encoding="utf-8")
    assert fetch(server, tmp_path, **known()) == SHA256
    assert_whole(tmp_path)
    assert server.requests == []


def test_a_damaged_part_is_fetched_again_by_its_checksum(server: FileServer, tmp_path: Path) -> None:
    server.files["/data.bin"] = CONTENT
    (tmp_path / "data.bin.part").write_bytes(b"x" * 1000)
    note = {"url": f"{server.url}/data.bin", "version": "", "total": len(CONTENT)}
    (tmp_path / "data.bin.part.json").write_text(json.dumps(note), encoding="utf-8")
    assert fetch(server, tmp_path, **known()) == SHA256
    assert_whole(tmp_path)


@pytest.mark.parametrize("kind", ["sha256", "git"])
def test_a_wrong_checksum_is_an_error_that_names_both_and_leaves_nothing(
    server: FileServer, tmp_path: Path, kind: Any
) -> None:
    server.files["/data.bin"] = CONTENT
    wrong = Checksum(kind, "ab" * 20)
    with pytest.raises(PrepareError, match=rf"its {kind} is \w+ and must be abab"):
        fetch(server, tmp_path, size=len(CONTENT), checksum=wrong)
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 2, "once more from the beginning, then no more"


def test_gits_checksum_of_a_small_file_is_the_one_that_git_has(server: FileServer, tmp_path: Path) -> None:
    server.files["/data.bin"] = b"hello\n"
    git = Checksum("git", "ce013625030ba8dba906f756967f9e9ca394464a")
    fetch(server, tmp_path, size=6, checksum=git)
    assert (tmp_path / "data.bin").read_bytes() == b"hello\n"


def test_another_size_than_known_is_refused_before_it_is_fetched(server: FileServer, tmp_path: Path) -> None:
    server.files["/data.bin"] = CONTENT
    with pytest.raises(PrepareError, match="has 300000 bytes; it must have 5"):
        fetch(server, tmp_path, size=5)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "404: there is no such file"),
        (403, "403: it needs a token.*HF_TOKEN"),
        (401, "HF_TOKEN"),
        (418, "418"),
    ],
)
def test_a_refusal_is_final_and_says_what_to_do(
    server: FileServer, tmp_path: Path, status: int, said: str
) -> None:
    server.statuses["/data.bin"] = [status] * 20
    with pytest.raises(PrepareError, match=said):
        fetch(server, tmp_path)
    assert len(server.requests) == 1


def test_a_server_that_is_busy_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    server.files["/data.bin"] = CONTENT
    server.statuses["/data.bin"] = [503, 429, 500]
    assert fetch(server, tmp_path) == SHA256


def test_a_web_page_in_the_place_of_the_file_is_refused(server: FileServer, tmp_path: Path) -> None:
    """What a log-in page or a file host's warning looks like; it would be taken for the data else."""
    server.files["/data.bin"] = b"<html>please sign in</html>"
    server.types["/data.bin"] = "text/html; charset=utf-8"
    with pytest.raises(SourceUnavailable, match="web page instead of the file"):
        fetch(server, tmp_path)


def test_a_redirect_is_followed_and_the_token_stays_with_the_hub(server: FileServer, tmp_path: Path) -> None:
    with file_server() as store:
        store.files["/blob"] = CONTENT
        server.redirects["/data.bin"] = f"{store.url}/blob?signature=1"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert fetch(server, tmp_path, headers=headers) == SHA256
        assert server.asked("/data.bin")[0]["authorization"] == f"Bearer {TOKEN}"
        assert "authorization" not in store.asked("/blob")[0]


# --- places and names --------------------------------------------------------------------------------------------


def test_places_are_read_as_they_are_written() -> None:
    assert read_place("Qwen/Qwen2.5-7B-Instruct") == HubPlace("Qwen/Qwen2.5-7B-Instruct")
    assert read_place("hub:a/b@v1.0:data/x y.json") == HubPlace("a/b", "v1.0", "data/x y.json")
    assert read_place("https://x.org/a?dl=1") == UrlPlace("https://x.org/a?dl=1")
    assert file_name(read_place("https://x.org/a%20b.json?dl=1")) == "a b.json"


@pytest.mark.parametrize("text", ["", "x", "hub:a", "hub:../b", "ftp://x/y", "https:///x", "a/b/c", "hub:a/b@:x"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(PrepareError, match="place"):
        read_place(text)


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "~/x", "a\\..\\x", "c:x", "a\nb", "", "..", "\x7f"]
)
def test_a_name_that_leads_out_of_its_folder_is_refused(name: str) -> None:
    with pytest.raises(PrepareError, match="refused"):
        safe_name(name)


def test_secrets_of_a_url_are_not_shown() -> None:
    assert shown("https://me:pass@x.org:8443/a/b?token=secret#x") == "https://x.org:8443/a/b"
    with pytest.raises(PrepareError) as refused:
        read_place("https://me:pass@x.org:port/a")
    assert "pass" not in str(refused.value)


@pytest.mark.parametrize("served", [None, b'{"no": "listing"}'], ids=["nobody answers", "no listing"])
def test_a_password_of_a_mirror_is_in_no_error(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, served: bytes | None
) -> None:
    place = HubPlace("own/pages")
    host = server.url.removeprefix("http://") if served else "127.0.0.1:9"
    monkeypatch.setenv("HF_ENDPOINT", f"http://me:pass@{host}")
    server.files["/api/datasets/own/pages/tree/main"] = served or b""
    with new_client(1) as client, pytest.raises(PrepareError) as refused:
        Hub(client, lambda seconds: None).files(place, "dataset", "main")
    assert "/api/datasets/own/pages/tree/main" in str(refused.value)
    assert "pass" not in str(refused.value)


@pytest.mark.parametrize("given", ["huggingface.co", "http://me:pass@h:port", "ftp://me:pass@h", "https://"])
def test_an_address_of_the_hub_that_is_none_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", given)
    with pytest.raises(PrepareError, match="HF_ENDPOINT is not an address") as refused:
        endpoint()
    assert "pass" not in str(refused.value)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"format": 2, "version": "9.1"}, r"has format 2, and .* reads 1.*\(9\.1\)"),
        ({"preparation": "alfworld"}, "of the preparation 'alfworld', not of 'deepsearch'"),
    ],
)
def test_what_another_version_or_preparation_wrote_is_refused(
    tmp_path: Path, written: dict[str, Any], said: str
) -> None:
    (tmp_path / "prepared.json").write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(PrepareError, match=said):
        read_prepared(tmp_path)


# --- the whole preparation ---------------------------------------------------------------------------------------


HOTPOT = json.dumps([{"_id": "1", "question": "Who?", "answer": "Ada", "type": "bridge"}]).encode()
TRIVIA = b'{"Data": [{"Question": "Who?", "QuestionId": "q", "Answer": {"Value": "Ada"}}]}'
LINES = b'{"question": "Who?", "answer": ["Ada"]}\n' * 10
CORPUS = b'{"id": "1", "contents": "Ada\\nAda Lovelace wrote programs."}\n' * 50


@pytest.fixture
def published(server: FileServer) -> FileServer:
    """A hub and a web that have everything the sources of `sources_file` name."""
    server.put("model", MODEL, {
        "config.json": b"{}", "model-00001-of-00002.safetensors": CONTENT[:9000], "tokenizer.json": CONTENT[:200],
        "model-00002-of-00002.safetensors": CONTENT, "model.safetensors.index.json": b'{"weight_map": {}}',
        "pytorch_model.bin": CONTENT, "original/consolidated.00.pth": CONTENT, "README.md": b"#",
    })  # fmt: skip
    server.put("dataset", "some/lines", {"nq/train.jsonl": LINES, "dev.jsonl": LINES[:41]})
    server.put("dataset", "some/corpus", {"wiki.jsonl": CORPUS})
    server.files["/hotpot.json"] = HOTPOT
    server.files["/trivia.zip"] = zipped(
        {"top/web-train.json": TRIVIA, "top/web-dev.json": TRIVIA, "__MACOSX/top/web-dev.json": b"x"}
    )
    return server


def sources_file(server: FileServer, folder: Path) -> Path:
    trivia = {"place": f"{server.url}/trivia.zip?dl=1"}
    sha256 = hashlib.sha256(HOTPOT).hexdigest()
    content = {
        "model": f"hub:{MODEL}",
        "questions": [
            {"dataset": "hotpotqa", "split": "train", "weight": 2, "from": [
                {"place": f"{server.url}/hotpot.json", "bytes": len(HOTPOT), "sha256": sha256},
            ]},
            {"dataset": "nq", "split": "train", "weight": 1, "from": [
                {"place": f"{server.url}/gone.jsonl"},
                {"place": "hub:some/lines:nq/train.jsonl", "about_bytes": 400},
            ]},
            {"dataset": "triviaqa", "split": "train", "weight": 1, "from": [
                trivia | {"member": "web-train.json"},
            ]},
            {"dataset": "triviaqa", "split": "test_id", "limit": 5, "from": [
                trivia | {"member": "web-dev.json"},
            ]},
            {"dataset": "2wikimultihopqa", "split": "test_ood", "from": [{"place": "hub:some/lines:dev.jsonl"}],
             "aliases": [{"place": f"{server.url}/no_aliases.json"}]},
        ],
        "corpus": {"from": [{"place": "hub:some/corpus:wiki.jsonl"}]},
        "index": {"about_bytes": 1000, "hours": 0.5},
    }  # fmt: skip
    path = folder / "sources.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


MANIFEST = {
    "kind": "megatron_empg search index",
    "version": VERSION,
    "source": "c",
    "source_sha256": "",
    "k1": 1.2,
}
MANIFEST |= {"b": 0.75, "stop_words": "", "documents": 1, "titles": 1, "continued": 0, "repeated": 0, "words": 1}
MANIFEST |= {"postings": 1}


@pytest.fixture
def index_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for `empg index`, and counts how often it ran."""
    script = tmp_path / "index.py"
    script.write_text(
        "import hashlib, json, pathlib, sys\n"
        "corpus, out = map(pathlib.Path, sys.argv[1:])\n"
        "assert corpus.is_file() and not out.exists()\n"
        "out.mkdir()\n"
        "(out / 'postings').write_bytes(b'p' * 1000)\n"
        f"manifest = {MANIFEST!r}\n"
        "manifest['files'] = {'postings': hashlib.sha256(b'p' * 1000).hexdigest()}\n"
        "(out / 'manifest.json').write_text(json.dumps(manifest))\n"
        "with open(__file__ + '.ran', 'a') as file: file.write('x')\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(
        deepsearch, "index_command", lambda corpus, out: [sys.executable, str(script), str(corpus), str(out)]
    )
    return script.with_name("index.py.ran")


def run(server: FileServer, tmp_path: Path, **options: Any) -> tuple[PreparedFolder, str]:
    said: list[str] = []
    sources = read_sources(sources_file(server, tmp_path))
    prepared = prepare(sources, PreparationOptions(tmp_path / "data", **options), said.append)
    return prepared, "\n".join(said)


def test_all_of_it_is_prepared_and_written_down(
    published: FileServer, tmp_path: Path, index_builder: Path
) -> None:
    prepared, said = run(published, tmp_path)
    folder = tmp_path / "data"
    assert read_prepared(folder) == prepared
    assert prepared.missing() == []
    (model,) = prepared.models.values()
    assert (folder / model.path / "model-00002-of-00002.safetensors").read_bytes() == CONTENT
    assert model.origin == f"hub:{MODEL}@{COMMIT}"
    names = {Path(file.path).name for file in model.files}
    assert "config.json" in names
    assert not {"pytorch_model.bin", "README.md", "consolidated.00.pth"} & names, (
        "what no one reads is not fetched"
    )
    train = {entry.dataset: entry for entry in prepared.questions["train"]}
    assert {name: entry.weight for name, entry in train.items()} == {"hotpotqa": 2, "nq": 1, "triviaqa": 1}
    assert (folder / train["triviaqa"].file.path).read_bytes() == TRIVIA
    assert (train["hotpotqa"].file.checked, train["nq"].file.checked) == ("published", "hub")
    assert prepared.questions["test_id"][0].limit == 5
    for files in ([entry.file for entry in train.values()], model.files, [prepared.corpus]):
        for file in files:
            content = (folder / file.path).read_bytes()
            assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (folder / "index/manifest.json").exists()
    assert prepared.index is not None
    assert prepared.index.of_sha256 == prepared.corpus.sha256
    assert not list(folder.rglob("*.part*"))
    assert not (folder / "downloads").exists()
    assert "gone.jsonl answers 404" in said, "the first place of nq has it no more"
    assert "going on without other names" in said


def test_a_second_run_fetches_nothing_and_asks_nobody(
    published: FileServer, tmp_path: Path, index_builder: Path
) -> None:
    run(published, tmp_path)
    published.requests.clear()
    prepared, _ = run(published, tmp_path)
    asked = {path for path, _ in published.requests}
    assert asked <= {"/no_aliases.json"}, "but for what was not to be had"
    assert prepared.missing() == []
    assert index_builder.read_text() == "x", "the index is built once"


def test_a_file_that_was_damaged_on_disk_is_fetched_again(
    published: FileServer, tmp_path: Path, index_builder: Path
) -> None:
    first, _ = run(published, tmp_path)
    victims = [tmp_path / "data" / name for name in ("questions/triviaqa/web-train.json", "corpus/wiki.jsonl")]
    for victim in victims:
        victim.write_bytes(b"!" + victim.read_bytes()[1:])
    second, said = run(published, tmp_path)
    assert said.count("is not what it was when it was fetched") == 2
    assert second.questions == first.questions
    assert victims[0].read_bytes() == TRIVIA
    assert victims[1].read_bytes() == CORPUS


def test_what_no_publisher_vouches_for_must_stay_what_it_was_first(
    published: FileServer, tmp_path: Path, index_builder: Path
) -> None:
    _, said = run(published, tmp_path, only=("data",))
    assert "no checksum is published: later runs check that it stays the same" in said
    (tmp_path / "data/questions/triviaqa/web-train.json").unlink()
    published.files["/trivia.zip"] = zipped({"web-train.json": b"{}", "web-dev.json": TRIVIA})
    with pytest.raises(PrepareError, match=r"must be \w+; .* another file when it was first fetched; to accept"):
        run(published, tmp_path, only=("data",))


def test_parts_may_be_prepared_one_by_one(published: FileServer, tmp_path: Path, index_builder: Path) -> None:
    assert run(published, tmp_path, only=("corpus",))[0].missing() == ["model", "data", "index"]
    assert run(published, tmp_path, only=("model", "data"))[0].missing() == ["index"]
    assert run(published, tmp_path, only=("index",))[0].missing() == []


def _other_bytes_of_the_same_size(index: Path) -> None:
    (index / "postings").write_bytes(b"q" * 1000)


def _a_file_is_gone(index: Path) -> None:
    (index / "postings").unlink()


def _no_manifest(index: Path) -> None:
    (index / "manifest.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize("harm", [_other_bytes_of_the_same_size, _a_file_is_gone, _no_manifest])
def test_an_index_that_was_damaged_on_disk_is_built_anew(
    published: FileServer, tmp_path: Path, index_builder: Path, harm: Any
) -> None:
    first, _ = run(published, tmp_path, only=("corpus", "index"))
    harm(tmp_path / "data/index")
    second, said = run(published, tmp_path, only=("index",))
    assert "building the index again: " in said
    assert index_builder.read_text() == "xx"
    assert (tmp_path / "data/index/postings").read_bytes() == b"p" * 1000
    assert second.index == first.index


def test_in_a_hurry_an_index_is_compared_by_sizes_alone(
    published: FileServer, tmp_path: Path, index_builder: Path
) -> None:
    run(published, tmp_path, only=("corpus", "index"))
    _other_bytes_of_the_same_size(tmp_path / "data/index")
    _, said = run(published, tmp_path, only=("index",), quick=True)
    assert ("checking the index" in said, index_builder.read_text()) == (False, "x")
    _a_file_is_gone(tmp_path / "data/index")
    run(published, tmp_path, only=("index",), quick=True)
    assert index_builder.read_text() == "xx"


def test_an_index_of_which_nothing_is_noted_is_checked_and_never_removed(
    published: FileServer, tmp_path: Path, index_builder: Path
) -> None:
    run(published, tmp_path, only=("corpus", "index"))
    (tmp_path / "data/prepared.json").write_text("{", encoding="utf-8")
    _other_bytes_of_the_same_size(tmp_path / "data/index")
    with pytest.raises(PrepareError, match=r"postings is not the file that was built .*: remove the folder"):
        run(published, tmp_path, only=("corpus", "index"), quick=True)
    assert (tmp_path / "data/index/postings").exists()


def test_vectors_that_somebody_added_do_not_make_an_index_another(
    published: FileServer, tmp_path: Path, index_builder: Path
) -> None:
    run(published, tmp_path, only=("corpus", "index"))
    (tmp_path / "data/index/vectors.npy").write_bytes(b"v")
    _, said = run(published, tmp_path, only=("index",))
    assert "checking the index: postings\nthe index is there" in said
    assert index_builder.read_text() == "x"


def test_an_index_without_a_corpus_is_refused(published: FileServer, tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="--only corpus"):
        run(published, tmp_path, only=("index",))


def test_a_second_model_is_kept_beside_the_first(
    published: FileServer, tmp_path: Path, index_builder: Path
) -> None:
    published.put("model", "Own/Other-1B", {"config.json": b"{}", "model.safetensors": CONTENT})
    run(published, tmp_path, only=("model",))
    prepared, _ = run(published, tmp_path, only=("model",), model="Own/Other-1B")
    assert sorted(prepared.models) == ["Other-1B", "Tiny-Instruct"]


def test_a_model_may_be_a_folder_or_any_servers(published: FileServer, tmp_path: Path) -> None:
    own = tmp_path / "own-model"
    own.mkdir()
    with pytest.raises(PrepareError, match=r"no config\.json"):
        run(published, tmp_path, only=("model",), model=str(own))
    (own / "config.json").write_text("{}", encoding="utf-8")
    assert run(published, tmp_path, only=("model",), model=str(own))[0].models["own-model"].path == str(own)
    index = json.dumps({"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}).encode()
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "tokenizer_config.json": b"{}"}
    files |= {"model.safetensors.index.json": index, "x.safetensors": CONTENT, "y.safetensors": CONTENT[:5]}
    published.files |= {f"/mirror/tiny/{name}": content for name, content in files.items()}
    prepared, _ = run(published, tmp_path, only=("model",), model=f"{published.url}/mirror/tiny/")
    assert {Path(file.path).name for file in prepared.models["tiny"].files} == set(files)


def test_weights_named_outside_of_the_folder_are_refused(published: FileServer, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "../../x.safetensors"}}).encode()
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "tokenizer_config.json": b"{}"}
    published.files |= {f"/bad/{name}": content for name, content in files.items()}
    published.files["/bad/model.safetensors.index.json"] = index
    with pytest.raises(PrepareError, match="refused"):
        run(published, tmp_path, only=("model",), model=f"{published.url}/bad")
    published.put("model", "Own/Evil", {"../../evil.json": b"{}", "model.safetensors": CONTENT})
    with pytest.raises(PrepareError, match=r"'../../evil.json' is refused"):
        run(published, tmp_path, only=("model",), model="Own/Evil")
    assert not list(tmp_path.rglob("evil*"))


def test_the_hubs_checksum_is_held_against_what_came(published: FileServer, tmp_path: Path) -> None:
    published.said_of["model-00002-of-00002.safetensors"] = "0" * 64
    with pytest.raises(PrepareError, match=rf"its sha256 is {SHA256} and must be 0000"):
        run(published, tmp_path, only=("model",))
    assert read_prepared(tmp_path / "data") is None


def test_the_token_reaches_the_hub_alone_and_is_written_nowhere(
    published: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index_builder: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with file_server() as web:
        web.files |= {path: published.files.pop(path) for path in ("/hotpot.json", "/trivia.zip")}
        said: list[str] = []
        sources = read_sources(sources_file(web, tmp_path))
        prepare(sources, PreparationOptions(tmp_path / "data"), said.append)
        assert all("authorization" not in headers for _, headers in web.requests)
    assert {headers.get("authorization") for _, headers in published.requests} == {f"Bearer {TOKEN}"}
    assert TOKEN not in "\n".join(said)
    for path in (tmp_path / "data").rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("made", [zipped, tarred])
def test_a_file_is_taken_out_of_any_archive_by_its_name(published: FileServer, tmp_path: Path, made: Any) -> None:
    files = {"a/web-train.json": TRIVIA, "b/c/web-dev.json": LINES, "../../evil.txt": b"x"}
    published.files["/trivia.zip"] = made(files)
    run(published, tmp_path, only=("data",))
    assert (tmp_path / "data/questions/triviaqa/web-dev.json").read_bytes() == LINES
    assert not list(tmp_path.parent.rglob("evil.txt"))


@pytest.mark.parametrize(
    ("archive", "said"),
    [
        (b"PK no archive", "damaged or no archive"),
        (zipped({"web-dev.json": TRIVIA}), "0 files called web-train.json"),
        (zipped({"a/web-train.json": b"1", "b/web-train.json": b"2", "web-dev.json": b"3"}), "2 files called"),
    ],
)
def test_an_archive_that_lacks_the_file_is_named(
    published: FileServer, tmp_path: Path, archive: bytes, said: str
) -> None:
    published.files["/trivia.zip"] = archive
    with pytest.raises(PrepareError, match=said):
        run(published, tmp_path, only=("data",))


def test_two_preparations_of_one_folder_exclude_each_other(published: FileServer, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with alone(tmp_path / "data"), pytest.raises(PrepareError, match="another preparation"):
        run(published, tmp_path, only=("corpus",))


def test_an_index_that_fails_is_named_and_nothing_is_lost(
    published: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        deepsearch, "index_command", lambda corpus, out: [sys.executable, "-c", "raise SystemExit(3)"]
    )
    with pytest.raises(PrepareError, match="`empg index` ended with status 3"):
        run(published, tmp_path, only=("corpus", "index"))
    found = read_prepared(tmp_path / "data")
    assert found is not None
    assert found.missing() == ["model", "data", "index"]


# --- costs and disks ---------------------------------------------------------------------------------------------


def test_it_says_what_it_costs_before_it_fetches(published: FileServer, tmp_path: Path) -> None:
    prepared, said = run(published, tmp_path, dry_run=True)
    assert published.requests == []
    assert not (tmp_path / "data").exists()
    assert prepared.missing()
    assert "at 50 MB/s (an assumption" in said
    assert "nothing was fetched" in said


def test_the_shipped_sources_cost_what_docs_say(tmp_path: Path) -> None:
    sources = read_sources(SHIPPED)
    costs = deepsearch.expected_costs(
        sources, PreparationOptions(tmp_path), PreparedFolder(), deepsearch.FileRecords(tmp_path)
    )
    by_part = {cost.part: cost for cost in costs}
    assert by_part["model"].fetch == 65_527_752_704
    assert 1e9 < by_part["data"].fetch < 3e9
    assert 5e9 < by_part["corpus"].fetch < 6e9
    # By 1.27 GiB and 107 seconds of CPU time for 1 million passages, of which there are 21 million.
    assert by_part["index"].disk == pytest.approx(21 * 1.27 * 2**30, rel=0.05)
    assert by_part["index"].hours == pytest.approx(21 * 107 / 3600, rel=0.2)
    assert {questions.split for questions in sources.questions} == {"train", "test_id", "test_ood"}
    assert Bandwidth.of(None, 7e6).bytes_per_second == 7e6
    assert "given" in Bandwidth.of(3, 7e6).source


def test_too_little_room_is_said_before_anything_is_fetched(
    published: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(PrepareError, match=r"has 0\.0 GB free and this takes 1\.0 GB"):
        run(published, tmp_path)
    assert published.requests == []


def command(server: FileServer, tmp_path: Path, *arguments: str) -> list[str]:
    sources = sources_file(server, tmp_path)
    return [
        "bash",
        "slurm/prepare.sh",
        "deepsearch",
        str(tmp_path / "data"),
        "--sources",
        str(sources),
        *arguments,
    ]


def environment() -> dict[str, str]:
    return os.environ | {"EMPG_PYTHON": sys.executable}


def test_a_disk_that_runs_full_is_named_and_the_next_run_goes_on(published: FileServer, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the kernel refuses to write on, in the middle."""
    words = command(published, tmp_path, "--only", "model")
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "limited", *words]
    done = subprocess.run(
        limited, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "model-00002-of-00002.safetensors was written" in done.stderr
    assert "files may not grow so large" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    path = f"/{MODEL}/resolve/{COMMIT}/model-00002-of-00002.safetensors"
    assert published.asked(path)[-1]["range"].startswith("bytes=")


def test_after_a_kill_in_the_middle_the_same_command_goes_on(published: FileServer, tmp_path: Path) -> None:
    published.slow = 0.01
    words = command(published, tmp_path, "--only", "model")
    part = tmp_path / "data/model/Tiny-Instruct/model-00002-of-00002.safetensors.part"
    first = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 0):
        assert time.monotonic() < deadline, "it fetched nothing"
        assert first.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    published.slow = 0.0
    published.requests.clear()
    done = subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "prepared in" in done.stdout
    assert part.with_suffix("").read_bytes() == CONTENT
    path = f"/{MODEL}/resolve/{COMMIT}/{part.with_suffix('').name}"
    assert [headers.get("range", "")[:6] for headers in published.asked(path)] == ["bytes="]


def test_wrong_words_are_refused_and_a_fault_is_one_line(published: FileServer, tmp_path: Path) -> None:
    def said(*arguments: str) -> tuple[int, str]:
        words = command(published, tmp_path, *arguments)
        done = subprocess.run(
            words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stderr

    code, error = said("--only", "weights")
    assert (code, "'--only': 'weights' is not a part of deepsearch" in error) == (2, True), error
    for option, rule in (("--connections", "from 1 to 64"), ("--bandwidth", "a number above 0")):
        for value in ("99000000", "none", "0", "\u0661\u0662"):
            code, error = said(option, value)
            assert (code, f"{value!r} is not a " in error, rule in error) == (2, True, True), error
    code, error = said("--only", "model", "--model", "Own/None")
    assert (code, error.count("\n")) == (1, 1), error
    assert "answers 404" in error
    for words, rule in (
        (("--model", ""), "'--model': it is empty"),
        (("--model", "/nope"), "no model folder /nope"),
    ):
        code, error = said("--dry-run", *words)
        assert (code in (1, 2), rule in error) == (True, True), error


def test_packages_that_are_missing_are_named_before_anything_is_fetched(tmp_path: Path) -> None:
    """Those of the index too, which is built after hours."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    words = ["bash", "slurm/prepare.sh", "deepsearch", str(tmp_path / "data")]
    variables = os.environ | {"EMPG_PYTHON": str(bare)}
    done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 10
    assert "(bm25s httpx numba numpy pydantic typer yaml)" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("python", [None, "#!/bin/sh\necho 'Traceback: of an old Python' >&2; exit 1\n"])
def test_a_python_that_cannot_be_run_is_one_line(tmp_path: Path, python: str | None) -> None:
    path = tmp_path / "python"
    if python is not None:
        path.write_text(python, encoding="utf-8")
        path.chmod(0o755)
    done = subprocess.run(
        ["bash", "slurm/prepare.sh", "deepsearch", str(tmp_path / "data"), "--dry-run"],
        cwd=ROOT, env=os.environ | {"EMPG_PYTHON": str(path)}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (10, "", 1), done.stderr
    assert done.stderr.startswith("error: EMPG_PYTHON is ")
    assert "without a GPU 'make setup'" in done.stderr


def test_broken_sources_are_named_by_their_key(tmp_path: Path) -> None:
    path = tmp_path / "sources.yaml"
    for text, said in (
        ("[", "is not YAML"),
        ("model: x", "questions: Field required"),
        ("model: a/b\ncorpus: {from: []}\nquestions: []", "corpus.from"),
        ("model: a/b\ncorpus: {from: [{place: 'hub:a/b:../x'}]}\nquestions: []", "refused"),
        ("model: a/b\ncorpus: {from: [{place: 'hub:a/b:x', sha256: abc}]}\nquestions: []", "sha256"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(PrepareError, match=said):
            read_sources(path)
