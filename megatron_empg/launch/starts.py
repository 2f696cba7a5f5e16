"""RUN/starts: a line "JOB CHECKPOINT" for each start of a run, which the limits on restarts are read from.

JOB is Slurm's number, which a requeued job keeps; on one machine it is "local-PID-TIME" of the command, so that
each command counts its own restarts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from megatron_empg.launch.restart import RecordedStart
from megatron_empg.run.names import WHOLE_NUMBER, RunPaths


def read_starts(run_folder: Path, job: str) -> Sequence[RecordedStart]:
    """The starts of this job, oldest first; none without the file."""
    try:
        text = RunPaths(run_folder).starts.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == job and WHOLE_NUMBER.fullmatch(words[1]):
            found.append(RecordedStart(words[0], int(words[1])))
    return found


def note_start(run_folder: Path, start: RecordedStart) -> None:
    """Add a line, and bring it to disk before anything starts. Raises OSError."""
    with RunPaths(run_folder).starts.open("a", encoding="utf-8") as file:
        file.write(f"{start.job} {start.checkpoint}\n")
        file.flush()
        os.fsync(file.fileno())
