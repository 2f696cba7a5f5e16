"""What is read of a JSON file that may not be there, or may be torn."""

from pathlib import Path

import pytest

from megatron_empg.common.json_files import object_or_nothing


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b'{"a": "\xff"}', b"[" * 200_000])
def test_what_is_no_object_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert object_or_nothing(tmp_path / "a.json") == {}


def test_a_whole_file_is_its_keys_and_a_missing_one_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"ü": [1]}', encoding="utf-8")
    assert object_or_nothing(tmp_path / "a.json") == {"ü": [1]}
    assert object_or_nothing(tmp_path / "missing.json") == {}
