"""A run folder is one job's: the lock that `empg train` takes too, held by this process for its life."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from megatron_empg.launch.job_error import misconfigured
from megatron_empg.run.names import RunPaths


class RunLock:
    """RUN/.lock. No child inherits it."""

    def __init__(self) -> None:
        self._file = -1

    def take(self, run_folder: Path) -> None:
        """Raises JobError when another process holds it, OSError when the folder cannot be written."""
        self.release()
        self._file = os.open(RunPaths(run_folder).lock_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise misconfigured(
                f"another process trains in {run_folder}; wait for it, or set EMPG_RUN_FOLDER"
            ) from None
        except OSError:
            return  # some cluster file systems have no locks; the run is then the user's to keep single

    def release(self) -> None:
        """Give it free, as for the process in the image that writes the recipe there under the same lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
