"""Lines of a job's output."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from megatron_empg.launch.job_error import JobError


def say(line: str, where: TextIO | None = None) -> None:
    """Print a line with the time, to stdout or to `where`."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=where or sys.stdout, flush=True)


def tell_error(error: JobError) -> None:
    """Why the job ends, on stderr. Example: "2026-11-26 18:00:00 error (preflight): see the lines above"."""
    say(f"error ({error.word}): {error}", sys.stderr)
