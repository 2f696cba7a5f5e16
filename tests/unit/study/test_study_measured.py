"""The line of a run, by what its folder holds."""

from pathlib import Path

import pytest

from megatron_empg.common.jsonl import append_line
from megatron_empg.run.evaluations import Answered, write_answered
from megatron_empg.run.folder import RunFolder
from megatron_empg.study.cells import Cell
from megatron_empg.study.errors import StudyError
from megatron_empg.study.measured import result_of

CELL = Cell("quickstart", "empg", 2)
STEP = {"train/success": 0.123456, "train/episodes": 160.0, "time/step": 2.6, "empg/g_q05": 0.87654321}


def folder_of(root: Path, *, last: int, evaluated: tuple[int, ...]) -> RunFolder:
    """A run that logged so many steps and was evaluated after these."""
    folder = RunFolder(root)
    append_line(folder.metrics, {"step": 0, "time/evaluate": 10.2})
    for step in range(1, last + 1):
        append_line(folder.metrics, {"step": step, **STEP})
    for step in evaluated:
        write_answered(folder, Answered(step, "test_id/sampled", "0011" if step else "0001"))
    return folder


def test_a_finished_run_has_success_before_and_after_question_by_question(tmp_path: Path) -> None:
    found = result_of(CELL, "0a1b", folder_of(tmp_path, last=3, evaluated=(0, 3)), "finished")
    assert (found.cell, found.identity, found.ended) == (CELL, "0a1b", "finished")
    assert (found.before, found.after) == ({"test_id/sampled": 0.25}, {"test_id/sampled": 0.5})
    assert found.answered_after == {"test_id/sampled": "0011"}
    assert (found.steps, found.episodes, found.seconds) == (3, 480, 18)
    assert found.curve == [0.1235, 0.1235, 0.1235]
    assert found.diagnostics == {"empg/g_q05": 0.876543}


def test_a_collapsed_run_has_what_there_is(tmp_path: Path) -> None:
    found = result_of(CELL, "0a1b", folder_of(tmp_path, last=2, evaluated=(0,)), "collapsed", "step 2: no groups")
    assert (found.why, found.steps, found.after) == ("step 2: no groups", 2, {})
    assert found.before == {"test_id/sampled": 0.25}


@pytest.mark.parametrize("evaluated", [(0,), (3,), (0, 2)])
def test_a_run_that_was_not_evaluated_before_and_after_has_no_line(
    evaluated: tuple[int, ...], tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match="quickstart-empg-2: evaluated on"):
        result_of(CELL, "0a1b", folder_of(tmp_path, last=3, evaluated=evaluated), "finished")
