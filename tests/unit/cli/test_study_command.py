"""`empg study` from the command line: what runs nothing, and what is refused with one message."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_empg.cli import app
from megatron_empg.study.errors import StudyError
from megatron_empg.study.results import append_result
from tests.support.studies import result, small_study, write_study


def test_the_list_says_how_far_each_run_is(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    append_result(small_study(tmp_path).results, result("plain", 1, "01"))
    done = CliRunner().invoke(app, ["study", str(path), "--list"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[:2] == ["quickstart-plain-1: finished", "quickstart-empg-1: waiting"]


def test_the_report_is_written_beside_the_results(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    append_result(small_study(tmp_path).results, result("plain", 1, "01"))
    done = CliRunner().invoke(app, ["study", str(path), "--report"])
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "small.md") in done.output.splitlines()


@pytest.mark.parametrize("words", [["--report", "--list"], ["--minutes", "0"], ["--minutes", "nan"]])
def test_words_that_mean_nothing_are_refused(words: list[str], tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["study", str(write_study(tmp_path)), *words]).exit_code == 2


def test_a_study_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["study", str(tmp_path / "nowhere.yaml")])
    assert isinstance(done.exception, StudyError)
    assert "cannot read study" in str(done.exception)
