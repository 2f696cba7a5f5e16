"""What was fetched into a folder so far: DIR/.fetched.json, written anew after every file."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from megatron_empg.prepare.disk import write_aside

Checked = Literal["hub", "published", "first fetch"]
"""By whose checksum a file was checked: the hub's, a published one, or only its own of the first fetch."""


@dataclass(frozen=True)
class FileRecord:
    """A file that is whole. `place` is what the sources say, `origin` where it came from in truth.

    `archive`: the sha256 of what it was taken out of; empty for a file that was fetched by itself.
    """

    place: str
    origin: str
    size: int
    sha256: str
    checked: Checked
    archive: str = ""


class FileRecords:
    """The records of one folder; many threads may use them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".fetched.json"
        self._lock = threading.Lock()
        self._files: dict[str, FileRecord] = {}
        self._commits: dict[str, str] = {}
        self.bytes_per_second = 0.0
        self._read()

    def file(self, name: str) -> FileRecord | None:
        with self._lock:
            return self._files.get(name)

    def put(self, name: str, record: FileRecord) -> None:
        with self._lock:
            self._files[name] = record
            self._write()

    def commit(self, place: str) -> str | None:
        """The commit that a place of the hub was when it was first asked for: files of two are never mixed."""
        with self._lock:
            return self._commits.get(place)

    def put_commit(self, place: str, commit: str) -> None:
        with self._lock:
            self._commits[place] = commit
            self._write()

    def put_speed(self, bytes_per_second: float) -> None:
        with self._lock:
            self.bytes_per_second = bytes_per_second
            self._write()

    def _read(self) -> None:
        try:
            raw = json.loads(self._path.read_text(encoding="utf-8"))
            self._files = {name: FileRecord(**record) for name, record in raw["files"].items()}
            self._commits = dict(raw["commits"])
            self.bytes_per_second = float(raw["bytes_per_second"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # None yet, or of another release: files that are there are checked or fetched again.
            self._files, self._commits = {}, {}

    def _write(self) -> None:
        content = {
            "files": {name: asdict(record) for name, record in sorted(self._files.items())},
            "commits": self._commits,
            "bytes_per_second": self.bytes_per_second,
        }
        write_aside(self._path, json.dumps(content, indent=1) + "\n")
