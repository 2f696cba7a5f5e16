"""A checkpoint's files against its manifest, on one rank."""

from pathlib import Path

import pytest

from megatron_empg.actor.manifest import (
    CheckpointError,
    file_records,
    first_fault,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "step_000002"
    (made / "megatron").mkdir(parents=True)
    (made / "megatron/a.distcp").write_bytes(b"abc")
    (made / "megatron/b.distcp").write_bytes(b"")
    write_manifest(made, {"step": 2, "files": file_records(made, made.rglob("*.distcp"))})
    return made


def fault(folder: Path) -> str | None:
    return first_fault(folder, sorted(read_manifest(folder)["files"].items()))


def test_checksums_are_sha256(folder: Path) -> None:
    record = read_manifest(folder)["files"]["megatron/a.distcp"]
    # NIST's example for the message "abc" (FIPS 180-2, appendix B.1).
    assert record["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record["bytes"] == 3


def test_a_whole_folder_has_no_fault(folder: Path) -> None:
    assert fault(folder) is None
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "megatron"]


def test_faults_name_the_file(folder: Path) -> None:
    path = folder / "megatron/a.distcp"
    path.write_bytes(b"abd")
    assert fault(folder) == f"{path} was altered: its checksum differs from the one in manifest.json"
    path.write_bytes(b"ab")
    assert fault(folder) == f"{path} has 2 bytes, not the 3 that were written"
    path.unlink()
    assert fault(folder) == f"{path} is missing"


@pytest.mark.parametrize("content", [None, "", '{"step": 2', "\x00"])
def test_a_manifest_that_cannot_be_read_is_named(folder: Path, content: str | None) -> None:
    if content is None:
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"step_000002 has no readable manifest\.json"):
        read_manifest(folder)
