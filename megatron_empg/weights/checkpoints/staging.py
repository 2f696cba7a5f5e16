"""A folder made beside its destination, file by file, and renamed when whole; an interrupted making goes on."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from megatron_empg.common.files import aside_of
from megatron_empg.weights.checkpoints.errors import CheckpointError

_RECORD = "conversion.jsonl"


class Staging:
    """Context: ``folder`` to write into, ``done`` with what an interrupted run of the same task recorded.

    Leaving it renames the folder to the destination. A CheckpointError removes it: no repetition would succeed.
    Raises CheckpointError when the destination exists.
    """

    def __init__(self, destination: Path, task: dict[str, Any]) -> None:
        self.destination = Path(destination)
        self.folder = aside_of(self.destination)
        self.done: dict[str, Any] = {}
        self._task = json.loads(json.dumps(task))

    def __enter__(self) -> "Staging":
        if self.destination.exists():
            raise CheckpointError(f"{self.destination} exists; remove it or name another destination")
        lines = _whole_lines(self.folder / _RECORD)
        if lines and lines[0] == self._task:
            self.done = dict(lines[1:])
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self._append(self._task)
        return self

    def record(self, file: str, what: Any) -> None:
        """Note that a file is whole; ``what`` (JSON) is kept with it."""
        self._append([file, what])

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            (self.folder / _RECORD).unlink()
            os.replace(self.folder, self.destination)
        elif issubclass(kind, CheckpointError):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _append(self, line: Any) -> None:
        with (self.folder / _RECORD).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[Any]:
    """The lines written to the end; the last may have been cut off."""
    if not path.exists():
        return []
    return [
        json.loads(line)
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.endswith("\n")
    ]
