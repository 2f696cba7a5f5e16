"""What a later preparation holds against what an earlier one left, and what it refuses before it begins."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_empg.prepare.deepsearch import PreparationOptions, prepare
from megatron_empg.prepare.errors import PrepareError
from megatron_empg.prepare.manifest import PreparedFolder, read_prepared
from megatron_empg.prepare.places import UrlPlace
from megatron_empg.prepare.records import FileRecords
from megatron_empg.prepare.sources import read_sources
from tests.support.archives import zipped
from tests.support.file_server import FileServer, file_server

ROOT = Path(__file__).parents[3]
QUESTIONS = b'{"question": "Who?", "answer": ["Ada"]}\n' * 10
SHA256 = hashlib.sha256(QUESTIONS).hexdigest()
WRONG = "0" * 64
CORPUS = b'{"id": "1", "contents": "Ada\\nAda Lovelace wrote programs."}\n' * 50
WEIGHTS = b"A" * 1000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with file_server() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        found.files |= {"/q.jsonl": QUESTIONS, "/c.jsonl": CORPUS}
        found.files["/q.zip"] = zipped({"q.jsonl": QUESTIONS})
        model = {"config.json": b"{}", "tokenizer.json": b"{}", "tokenizer_config.json": b"{}"}
        model["model.safetensors"] = WEIGHTS
        for name, content in model.items():
            found.files[f"/models/tiny/{name}"] = content
        yield found


def sources_of(folder: Path, server: FileServer, *questions: dict[str, Any], dataset: str = "nq") -> Path:
    """Each of `questions` is the place of a file, below the server where it is no place of the hub."""
    entries = []
    for question in questions or ({"place": "/q.jsonl"},):
        place = question["place"]
        at = place if place.startswith("hub:") else f"{server.url}{place}"
        entries.append({"dataset": dataset, "split": "train", "from": [question | {"place": at}]})
    corpus = {"from": [{"place": f"{server.url}/c.jsonl"}]}
    path = folder / "sources.yaml"
    content = {"model": f"{server.url}/models/tiny", "questions": entries, "corpus": corpus}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def run(sources: Path, only: str = "data", **options: Any) -> tuple[PreparedFolder, str]:
    said: list[str] = []
    options = PreparationOptions(sources.parent / "data", only=(only,), **options)
    prepared = prepare(read_sources(sources), options, said.append)
    return prepared, "\n".join(said)


@pytest.mark.parametrize("dataset", ["../../../outside", "squad", "", "/tmp/x", "NQ"])
def test_a_dataset_that_no_reader_knows_is_refused_before_anything_is_fetched(
    server: FileServer, tmp_path: Path, dataset: str
) -> None:
    with pytest.raises(PrepareError, match=r"questions\.0\.dataset: Input should be 'hotpotqa'"):
        run(sources_of(tmp_path, server, dataset=dataset))
    assert server.requests == []
    assert not list(tmp_path.rglob("q.jsonl"))


def test_two_files_under_one_name_are_refused(server: FileServer, tmp_path: Path) -> None:
    path = sources_of(tmp_path, server, {"place": "/q.jsonl"}, {"place": "/other/q.jsonl"})
    with pytest.raises(PrepareError, match=r"two files of nq would both be called q\.jsonl"):
        read_sources(path)
    read_sources(sources_of(tmp_path, server, {"place": "/q.jsonl"}, {"place": "/o/q.jsonl", "name": "o.jsonl"}))


# --- prepared.json ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", ['{"format": 1, "models": ', "", '{"models": 3}', "[]", "\x00"])
def test_a_broken_prepared_json_is_written_anew_by_the_command_that_its_error_names(
    server: FileServer, tmp_path: Path, torn: str
) -> None:
    sources = sources_of(tmp_path, server)
    before, _ = run(sources)
    server.requests.clear()
    (tmp_path / "data/prepared.json").write_text(torn, encoding="utf-8")
    with pytest.raises(PrepareError, match=r"run slurm/prepare\.sh"):
        read_prepared(tmp_path / "data")
    prepared, said = run(sources)
    assert "prepared.json is broken and is written again" in said
    assert read_prepared(tmp_path / "data") == prepared
    assert prepared.questions == before.questions
    assert server.requests == [], "what was fetched is kept"


def test_a_prepared_json_of_another_format_is_not_written_over(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data/prepared.json"
    path.write_text('{"format": 2}', encoding="utf-8")
    with pytest.raises(PrepareError, match="has format 2"):
        run(sources_of(tmp_path, server))
    assert path.read_text(encoding="utf-8") == '{"format": 2}'


# --- what the sources say now -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/q.jsonl", "hub:some/lines:q.jsonl", "hub:some/short:q.jsonl"])
@pytest.mark.parametrize("now", [{"sha256": WRONG}, {"bytes": 7}])
def test_what_the_sources_tell_by_now_is_held_against_a_file_that_is_here(
    server: FileServer, tmp_path: Path, place: str, now: dict[str, Any]
) -> None:
    server.put("dataset", "some/lines", {"q.jsonl": QUESTIONS})
    server.put("dataset", "some/short", {"q.jsonl": QUESTIONS[:80]})  # the hub tells no sha256 of small files
    run(sources_of(tmp_path, server, {"place": place}))
    for _ in range(2):
        with pytest.raises(PrepareError, match=r"must be 0000|must have 7|want 7 bytes|sources want"):
            run(sources_of(tmp_path, server, {"place": place} | now))


def test_a_right_checksum_that_the_sources_tell_later_is_noted(server: FileServer, tmp_path: Path) -> None:
    first, _ = run(sources_of(tmp_path, server))
    assert first.questions["train"][0].file.checked == "first fetch"
    server.requests.clear()
    told = {"place": "/q.jsonl", "sha256": SHA256, "bytes": len(QUESTIONS)}
    second, _ = run(sources_of(tmp_path, server, told))
    assert second.questions["train"][0].file.checked == "published"
    assert server.requests == []


def test_a_new_version_that_the_sources_name_replaces_the_old_one(server: FileServer, tmp_path: Path) -> None:
    run(sources_of(tmp_path, server))
    server.files["/q.jsonl"] = QUESTIONS * 2
    told = {"place": "/q.jsonl", "sha256": hashlib.sha256(QUESTIONS * 2).hexdigest()}
    _, said = run(sources_of(tmp_path, server, told))
    assert "nq/q.jsonl is not what the sources tell by now" in said
    assert (tmp_path / "data/questions/nq/q.jsonl").read_bytes() == QUESTIONS * 2


@pytest.mark.parametrize("right", [True, False])
def test_a_checksum_of_an_archive_is_held_against_what_was_taken_out_of_it(
    server: FileServer, tmp_path: Path, right: bool
) -> None:
    place = {"place": "/q.zip", "member": "q.jsonl"}
    run(sources_of(tmp_path, server, place))
    server.requests.clear()
    sha256 = hashlib.sha256(server.files["/q.zip"]).hexdigest() if right else WRONG
    path = sources_of(tmp_path, server, place | {"sha256": sha256})
    if right:
        assert run(path)[0].questions["train"][0].file.checked == "published"
        assert server.requests == []
    else:
        with pytest.raises(PrepareError, match="must be 0000"):
            run(path)


def test_places_that_differ_in_their_query_are_two(server: FileServer, tmp_path: Path) -> None:
    server.files["/get"] = QUESTIONS
    run(sources_of(tmp_path, server, {"place": "/get?f=secret-a", "name": "q.jsonl"}))
    server.files["/get"] = QUESTIONS[:-40]
    run(sources_of(tmp_path, server, {"place": "/get?f=secret-b", "name": "q.jsonl"}))
    assert (tmp_path / "data/questions/nq/q.jsonl").read_bytes() == QUESTIONS[:-40]
    for name in (".fetched.json", "prepared.json"):
        assert "secret" not in (tmp_path / "data" / name).read_text(encoding="utf-8"), "queries hold secrets"
    assert UrlPlace("https://x.org/a?b=1").key != UrlPlace("https://x.org/a?b=2").key
    assert UrlPlace("https://x.org/a?b=1").key == UrlPlace("https://me:pass@x.org/a?b=1").key


def test_a_part_of_another_query_is_not_gone_on_with(server: FileServer, tmp_path: Path) -> None:
    server.files["/get"] = QUESTIONS
    folder = tmp_path / "data/questions/nq"
    folder.mkdir(parents=True)
    (folder / "q.jsonl.part").write_bytes(b"!" * 80)
    note = {"url": UrlPlace(f"{server.url}/get?f=a").key, "version": '"1"', "total": None}
    (folder / "q.jsonl.part.json").write_text(json.dumps(note), encoding="utf-8")
    run(sources_of(tmp_path, server, {"place": "/get?f=b", "name": "q.jsonl", "sha256": SHA256}))
    assert [headers.get("range") for headers in server.asked("/get")] == [None]


# --- a model by its URL -----------------------------------------------------------------------------------------


def test_a_damaged_file_of_a_servers_model_is_fetched_again(server: FileServer, tmp_path: Path) -> None:
    sources = sources_of(tmp_path, server)
    first, _ = run(sources, "model")
    config = tmp_path / "data/model/tiny/config.json"
    config.write_bytes(b"{x")
    server.files["/models/tiny/vocab.json"] = b"of a later version"
    second, _ = run(sources, "model")
    assert config.read_bytes() == b"{}"
    assert second.models == first.models, "nothing joins the files of the first fetch"


@pytest.mark.parametrize("lost", [False, True], ids=["with prepared.json", "without prepared.json"])
def test_a_new_version_of_a_servers_model_is_not_mixed_into_the_old_one(
    server: FileServer, tmp_path: Path, lost: bool
) -> None:
    sources = sources_of(tmp_path, server)
    run(sources, "model")
    folder = tmp_path / "data"
    record = FileRecords(folder).file("model/tiny/config.json")
    (folder / "model/tiny/config.json").write_bytes(b"{x")
    server.files["/models/tiny/config.json"] = b'{"version": 2}'
    if lost:
        (folder / "prepared.json").unlink()
    for _ in range(2):
        with pytest.raises(
            PrepareError, match=r"must be \w+; .* another file when it was first fetched; to accept"
        ):
            run(sources, "model")
    assert FileRecords(folder).file("model/tiny/config.json") == record
    assert (folder / "model/tiny/config.json").read_bytes() != b'{"version": 2}'


# --- what is refused at once ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("/nope", "there is no model folder /nope"),
        ("./nope", "there is no model folder"),
        ("", "named by an empty text"),
        (" ", "named by an empty text"),
        ("a/b/c", "not a place to fetch from"),
        ("hub:a/b:config.json", "names a file"),
        ("http://x.org/m?token=secret", "has no query"),
    ],
)
def test_a_model_that_cannot_be_is_refused_before_anything_is_fetched(
    server: FileServer, tmp_path: Path, model: str, said: str
) -> None:
    for only, dry_run in (("model", True), ("model", False), ("data", False)):
        with pytest.raises(PrepareError, match=said) as refused:
            run(sources_of(tmp_path, server), only, model=model, dry_run=dry_run)
        assert "secret" not in str(refused.value)
    assert server.requests == []
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("",), "Invalid value for 'DIR': it is empty; name a file or folder"),
        ((" ",), "Invalid value for 'DIR': it is empty; name a file or folder"),
        (("~nobody-of-here/x",), "Invalid value for 'DIR': DIR is '~nobody-of-here/x'"),
        (("DIR", "--sources", ""), "Invalid value for '--sources': it is empty; name a file or folder"),
        (("DIR", "--python", ""), "Invalid value for '--python': it is empty; name a file or folder"),
        (("data", "--model", ""), "Invalid value for '--model': it is empty"),
    ],
)
def test_an_empty_word_is_refused_by_name(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "megatron_empg.prepare", "deepsearch", *words, "--dry-run"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not list(tmp_path.iterdir())
