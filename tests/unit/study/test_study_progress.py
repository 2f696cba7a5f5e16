"""How far a study is."""

from pathlib import Path

from megatron_empg.common.jsonl import append_line
from megatron_empg.study.cells import cells_of
from megatron_empg.study.places import CellPlace
from megatron_empg.study.progress import progress_lines
from tests.support.studies import result, small_study


def test_each_run_and_the_hours_that_are_left(tmp_path: Path) -> None:
    cells = cells_of(small_study(tmp_path))
    begun = CellPlace(tmp_path / "runs", cells[2])
    begun.folder.root.mkdir(parents=True)
    append_line(begun.folder.metrics, {"step": 1})
    results = {
        cells[0]: result("plain", 1, "01", seconds=7200),
        cells[1]: result("empg", 1, "01", ended="collapsed"),
    }
    assert progress_lines(cells, results, tmp_path / "runs") == [
        "quickstart-plain-1: finished",
        "quickstart-empg-1: collapsed",
        "quickstart-plain-2: begun, checkpoint of step 0",
        "quickstart-empg-2: waiting",
        "2 of 4 runs have ended; about 4.0 hours are left, by the mean of those that finished",
    ]
    assert progress_lines(cells, {}, tmp_path / "runs")[-1] == "0 of 4 runs have ended"
