"""The report of a study: its tables, its charts, and that the same lines make the same bytes."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from megatron_empg.study.config import Study
from megatron_empg.study.errors import StudyError
from megatron_empg.study.page import write_report
from megatron_empg.study.results import append_result
from tests.support.studies import result, small_study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two seeds of two methods; a third method of which one run collapsed."""
    methods = {"plain": {}, "empg": {"base": "plain"}, "aem": {"base": "plain"}}
    study = small_study(tmp_path, methods=methods, pairs=[["plain", "empg"]])
    for one in (
        result("plain", 1, "0011"),
        result("empg", 1, "0111"),
        result("plain", 2, "0001"),
        result("empg", 2, "1111"),
        result("aem", 1, "0000", ended="collapsed", why="step 1: no groups\nof *any* kind", after={}, curve=[0.1]),
    ):
        append_result(study.results, one)
    return study


def rows(page: str, first: str) -> list[list[str]]:
    """Cells of the rows that begin with a word."""
    found = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(f"| {first} ")]
    return [[cell.strip() for cell in row] for row in found]


def test_the_table_has_before_after_difference_and_endings(study: Study) -> None:
    page = write_report(study)[0].read_text(encoding="utf-8")
    success, spending = rows(page, "empg")
    # By hand: 62.5 less 37.5 by seeds, of four questions 3 and 4 less 2 and 1.
    assert success[:4] == ["empg", "plain", "50.0", "87.5"]
    assert success[4].startswith("+50.0 \\[")
    assert success[6:] == ["2 of 2", "0", "0"]
    assert spending[1:5] == ["2", "256", "2.0", "50.0"]
    assert rows(page, "aem")[0][2:] == ["–", "–", "–", "–", "0 of 2", "1", "0"]
    assert "quickstart-aem-1 collapsed after step 2: step 1: no groups of \\*any\\* kind" in page
    assert "5 of 6 runs have ended." in page


def test_further_pairs_have_a_table_of_their_own(study: Study) -> None:
    page = write_report(study)[0].read_text(encoding="utf-8")
    pair = rows(page, "plain")[1]
    assert pair[:2] == ["plain", "empg"]
    assert pair[2].startswith("-50.0 \\[")


def test_the_power_of_the_bases_spread_is_told(study: Study) -> None:
    page = write_report(study)[0].read_text(encoding="utf-8")
    [power] = [line for line in page.splitlines() if line.startswith("| quickstart ")]
    assert power.startswith("| quickstart | plain | test\\_id/sampled | 2 | 17.7 |")


def test_charts_are_images_of_their_own(study: Study) -> None:
    page, *charts = write_report(study)
    assert [path.name for path in charts] == ["small-quickstart-plain-1.svg"]
    text = charts[0].read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert all(f">{method}<" in text for method in ("plain", "empg", "aem"))
    assert f"]({charts[0].name})" in page.read_text(encoding="utf-8")


def test_twice_the_same_bytes(study: Study) -> None:
    first = [path.read_bytes() for path in write_report(study)]
    assert [path.read_bytes() for path in write_report(study)] == first


def test_without_a_line_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="has no line of this study yet"):
        write_report(small_study(tmp_path))


def test_lines_of_two_runs_under_one_name_are_refused(study: Study) -> None:
    append_result(study.results, result("aem", 2, "0011", identity="another"))
    with pytest.raises(StudyError, match="method aem are of two runs, of aem and another"):
        write_report(study)
