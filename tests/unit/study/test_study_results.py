"""The lines of a study: read, added, and refused where they are not of its runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_empg.common.jsonl import append_line
from megatron_empg.study.cells import Cell, cells_of, settings_of
from megatron_empg.study.errors import StudyError
from megatron_empg.study.results import append_result, check_identities, finished_of, read_results
from tests.support.studies import result, small_study


def test_what_is_added_is_read(tmp_path: Path) -> None:
    path = tmp_path / "study" / "small.jsonl"
    assert read_results(path) == {}
    written = [result("plain", 1, "0110"), result("empg", 1, "1111", ended="collapsed", why="step 3: no groups")]
    for one in written:
        append_result(path, one)
    assert read_results(path) == {one.cell: one for one in written}
    assert finished_of(written) == written[:1]


def test_a_line_that_a_kill_has_torn_harms_no_other(tmp_path: Path) -> None:
    path = tmp_path / "small.jsonl"
    append_result(path, result("plain", 1, "0110"))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"task": "quickst')
    append_result(path, result("plain", 2, "0110"))
    assert [cell.seed for cell in read_results(path)] == [1, 2]


def test_a_line_that_is_no_run_is_named(tmp_path: Path) -> None:
    append_line(tmp_path / "small.jsonl", {"task": "quickstart"})
    with pytest.raises(StudyError, match="line 1: it is not the line of a run"):
        read_results(tmp_path / "small.jsonl")


def test_two_lines_of_a_run_are_refused(tmp_path: Path) -> None:
    for _ in range(2):
        append_result(tmp_path / "small.jsonl", result("plain", 1, "0110"))
    with pytest.raises(StudyError, match="line 2: quickstart-plain-1 has a line already"):
        read_results(tmp_path / "small.jsonl")


def test_a_line_of_another_identity_under_a_cells_name_is_refused(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    settings = settings_of(study, cells_of(study))
    own = replace(result("plain", 1, "0110"), identity=settings["quickstart", "plain"].identity)
    other = result("removed", 1, "0110")  # a method that the study has no more
    check_identities(study.results, settings, {own.cell: own, other.cell: other})
    strange = replace(own, identity="0a1b")
    with pytest.raises(StudyError, match="the line of quickstart-plain-1 is of another run"):
        check_identities(study.results, settings, {strange.cell: strange})


def test_a_result_knows_its_cell() -> None:
    assert result("empg", 3, "01").cell == Cell("quickstart", "empg", 3)
