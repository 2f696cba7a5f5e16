"""Files that others see whole or not at all."""

import ast
import json
import os
import stat
from pathlib import Path

import pytest

from megatron_empg.common import files, locks
from megatron_empg.common.files import (
    aside_of,
    put_bytes,
    put_in_place,
    put_json,
    put_text,
    written_aside,
)


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path, durable: bool) -> None:
    put_text(tmp_path / "a", "old, and longer", durable=durable)
    put_text(tmp_path / "a", "new", durable=durable)
    put_bytes(tmp_path / "b", b"\xff\x00", durable=durable)
    put_json(tmp_path / "c", {"x": [1]}, durable=durable)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {"a": b"new", "b": b"\xff\x00", "c": b'{"x": [1]}\n'}


def test_a_writing_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    put_text(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "a")
    with pytest.raises(TypeError):
        put_json(tmp_path / "a", {"x": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def interrupted(path: Path) -> None:
    with written_aside(path) as aside:
        assert aside.parent == path.parent
        aside.write_bytes(b"half")
        raise KeyboardInterrupt


def test_where_it_cannot_be_renamed_what_was_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="directory"):
        put_text(tmp_path / "a", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_keeps_its_mode_and_a_new_one_has_the_usual(tmp_path: Path) -> None:
    path = tmp_path / "a"
    put_text(path, "old")
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    path.chmod(0o600)
    put_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_utf_8_cannot_say_is_written_as_json_would(tmp_path: Path) -> None:
    put_text(tmp_path / "a", json.dumps({"text": "ü\ud83d"}, ensure_ascii=False))
    assert (tmp_path / "a").read_bytes() == b'{"text": "\xc3\xbc\\ud83d"}'
    assert json.loads((tmp_path / "a").read_text(encoding="utf-8")) == {"text": "ü\ud83d"}


def test_content_is_on_disk_before_its_name_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    monkeypatch.setattr(files, "sync", lambda path: done.append(("sync", path.name)))
    monkeypatch.setattr(Path, "replace", lambda path, target: done.append(("rename", path.name)))
    aside = aside_of(tmp_path / "model")
    assert aside.name == "model.writing"
    put_in_place(aside, tmp_path / "model")
    put_in_place(aside, tmp_path / "model", durable=False)
    assert done == [("sync", aside.name), ("rename", aside.name), ("rename", aside.name)]


def test_a_lock_is_held_until_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with path.open("a", encoding="utf-8") as first:
        locks.hold(first, RuntimeError("busy"))
        for hold in (locks.hold, locks.hold_where_possible):
            with path.open("a", encoding="utf-8") as second, pytest.raises(RuntimeError, match="busy"):
                hold(second, RuntimeError("busy"))
    with path.open("a", encoding="utf-8") as third:
        assert locks.hold_where_possible(third, RuntimeError("busy"))


def test_a_file_system_without_locks_is_told_apart_from_a_file_that_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with (tmp_path / ".lock").open("a", encoding="utf-8") as file:
        with pytest.raises(OSError, match="not implemented"):
            locks.hold(file, RuntimeError("busy"))
        assert not locks.hold_where_possible(file, RuntimeError("busy"))


@pytest.mark.parametrize("module", [files, locks])
def test_python_3_9_reads_them(module: object) -> None:
    ast.parse(Path(str(getattr(module, "__file__", ""))).read_text(encoding="utf-8"), feature_version=(3, 9))
