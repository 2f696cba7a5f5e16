"""A run folder is one job's: the lock that `empg train` takes too, held by this process for its life."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_empg.common.locks import hold_where_possible
from megatron_empg.launch.job_error import JobError, misconfigured
from megatron_empg.run.names import RunPaths


class RunLock:
    """RUN/.lock. No child inherits it."""

    def __init__(self) -> None:
        self._file = -1

    def take(self, run_folder: Path) -> None:
        """Raises JobError when another process holds it, OSError when the folder cannot be written."""
        self.release()
        self._file = os.open(RunPaths(run_folder).lock_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        busy = misconfigured(f"another process trains in {run_folder}; wait for it, or set EMPG_RUN_FOLDER")
        try:
            hold_where_possible(self._file, busy)
        except JobError:
            self.release()
            raise

    def release(self) -> None:
        """Give it free, as for the process in the image that writes the recipe there under the same lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
