"""A run folder is one process's: the file that is locked, and what the others are told.

The standard library of Python 3.9 is all it needs, since a Slurm job's script holds the lock too.
"""

from __future__ import annotations

import os
from pathlib import Path

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.locks import hold_where_possible
from megatron_empg.run.names import RunPaths


class RunFolderError(EmpgError, RuntimeError):
    """The folder cannot be used: not writable, or another process trains in it."""


class FolderLock:
    """RUN/.lock, held until `release` or the process's end, however it ends. No child inherits it."""

    def __init__(self) -> None:
        self._file = -1

    def take(self, run_folder: Path) -> None:
        """Raises RunFolderError when another process holds it, OSError when the folder cannot be written."""
        self.release()
        self._file = os.open(RunPaths(run_folder).lock_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        busy = RunFolderError(
            f"another process trains in {run_folder}; wait for it, end it, or give another run.folder "
            "(EMPG_RUN_FOLDER)"
        )
        try:
            hold_where_possible(self._file, busy)
        except RunFolderError:
            self.release()
            raise

    def release(self) -> None:
        """Let another process have it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
