"""A cell is one process's at a time, and remembers what failed."""

from pathlib import Path

from megatron_empg.run.folder import RunFolder
from megatron_empg.study.cells import Cell
from megatron_empg.study.places import CellPlace

CELL = Cell("quickstart", "empg", 2)


def test_a_cell_is_held_once(tmp_path: Path) -> None:
    with CellPlace(tmp_path, CELL).held() as first:
        with CellPlace(tmp_path, CELL).held() as second:
            assert (first, second) == (True, False)
        with CellPlace(tmp_path, Cell("quickstart", "empg", 3)).held() as other:
            assert other
    with CellPlace(tmp_path, CELL).held() as later:
        assert later


def test_a_folder_in_which_a_process_trains_is_not_ours(tmp_path: Path) -> None:
    training = RunFolder(tmp_path / CELL.name)
    training.lock()
    with CellPlace(tmp_path, CELL).held() as ours:
        assert not ours
    training.close()
    with CellPlace(tmp_path, CELL).held() as ours:
        assert ours


def test_failures_are_remembered_until_the_run_is_removed(tmp_path: Path) -> None:
    place = CellPlace(tmp_path, CELL)
    assert place.failures() == []
    for why in ("step 3: no groups", "a disk is gone"):
        place.note_failure(why)
    assert CellPlace(tmp_path, CELL).failures() == ["step 3: no groups", "a disk is gone"]
    place.folder.root.mkdir()
    place.remove_run()
    assert (place.failures(), place.folder.root.exists()) == ([], False)
