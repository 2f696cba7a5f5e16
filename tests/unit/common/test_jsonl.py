"""Lines of JSON that no writer of ours made are left out, as torn ones are."""

from pathlib import Path

import pytest

from megatron_empg.common.json_files import JsonFileError
from megatron_empg.common.jsonl import append_line, number, read_lines, step_of


@pytest.mark.parametrize("line", ['{"step": ', "[1]", "9" * 5001, '{"x": ' + "[" * 200_000, "\0", ""])
def test_a_line_that_is_not_a_record_is_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n', encoding="utf-8")
    assert read_lines(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("written", ["NaN", "-Infinity", "1e999", "1e101", "9" * 401])
def test_a_number_that_is_not_finite_or_too_large_is_read_as_none(tmp_path: Path, written: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(f'{{"step": 1, "x": [{written}, 2.5]}}\n', encoding="utf-8")
    assert read_lines(path) == [{"step": 1, "x": [None, 2.5]}]
    append_line(tmp_path / "ours.jsonl", {"step": 1, "x": [float("nan"), 2.5]})
    assert read_lines(tmp_path / "ours.jsonl") == read_lines(path)


def test_a_folder_in_the_files_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").mkdir()
    with pytest.raises(JsonFileError, match=r"lines.jsonl is a folder, where a file .* belongs: move it away"):
        read_lines(tmp_path / "lines.jsonl")


def test_what_is_not_a_number_or_not_a_step_is_none() -> None:
    assert [number(value) for value in (2, -0.5, 1e100)] == [2.0, -0.5, 1e100]
    assert [number(value) for value in (True, "1", None, float("nan"), 10**101, [1])] == [None] * 6
    assert [step_of({"step": step}) for step in (0, 7, 2**53)] == [0, 7, 2**53]
    assert [step_of({"step": step}) for step in (-1, 2**53 + 1, True, "3", 3.0, None)] == [None] * 6
    assert step_of({}) is None


def test_a_line_behind_one_that_a_kill_has_torn_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"step": 1})
    with path.open("ab") as file:
        file.write('{"step": 2, "text": "é'.encode()[:-1])
    append_line(path, {"step": 3})
    append_line(path, {"step": 4})
    assert [record["step"] for record in read_lines(path)] == [1, 3, 4]
    assert path.read_bytes().count(b"\n") == 4
