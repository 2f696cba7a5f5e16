"""A file of one JSON object a line that somebody else appends to: each look reads what is new."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from megatron_empg.common.jsonl import record_of


class GrowingLines:
    """The records of a file so far. One that was cut, or replaced by another, is read anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] = (0, 0)
        """Device and inode of what was read."""
        self._read = 0
        self._torn = b""
        """What stands behind the last whole line."""
        self.records: list[dict[str, Any]] = []

    def look(self) -> list[dict[str, Any]]:
        """All records, in the file's order; none where there is no file. A line that is no object is left out."""
        try:
            with self._path.open("rb") as file:
                self._take_up(file.fileno())
                file.seek(self._read)
                added = file.read()
        except OSError:
            self._begin()
            return self.records
        self._read += len(added)
        *lines, self._torn = (self._torn + added).split(b"\n")
        for line in lines:
            record = record_of(line.decode("utf-8", errors="replace"))
            if record is not None:
                self.records.append(record)
        return self.records

    def _take_up(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        same = self._file == (found.st_dev, found.st_ino)
        if not same or found.st_size < self._read:
            self._begin()
            self._file = (found.st_dev, found.st_ino)

    def _begin(self) -> None:
        self._file, self._read, self._torn, self.records = (0, 0), 0, b"", []
