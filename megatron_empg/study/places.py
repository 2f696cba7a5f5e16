"""Where a run of a study lies until it has a line: its folder, its lock, its log, its failures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_empg.common.jsonl import append_line, read_lines
from megatron_empg.common.locks import hold_where_possible
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.folder_lock import FolderLock, RunFolderError
from megatron_empg.study.cells import Cell


class CellPlace:
    """The files of a cell below the folder of the study's runs. Making the object touches nothing on disk."""

    def __init__(self, runs: Path, cell: Cell) -> None:
        self.folder = RunFolder(runs / cell.name)
        self.log = runs / f"{cell.name}.log"
        """What `empg train` printed the last time."""
        self._lock = runs / f"{cell.name}.lock"
        self._failures = runs / f"{cell.name}.failures.jsonl"

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Have the cell to ourselves; False where another process makes it, or trains in its folder."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        busy = BlockingIOError()
        with self._lock.open("ab") as file:
            try:
                hold_where_possible(file, busy)
            except BlockingIOError:
                yield False
                return
            yield not self._trains()

    def _trains(self) -> bool:
        """Whether a process holds the run folder: one that outlived the study that started it."""
        if not self.folder.root.exists():
            return False
        lock = FolderLock()
        try:
            lock.take(self.folder.root)
        except RunFolderError:
            return True
        lock.release()
        return False

    def failures(self) -> list[str]:
        """What each failed attempt said."""
        return [str(line.get("why", "")) for line in read_lines(self._failures)]

    def note_failure(self, why: str) -> None:
        """Remember a failed attempt, over kills of the study."""
        append_line(self._failures, {"why": why})

    def remove_run(self) -> None:
        """Remove what a run with a line has left."""
        shutil.rmtree(self.folder.root, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        self._failures.unlink(missing_ok=True)
