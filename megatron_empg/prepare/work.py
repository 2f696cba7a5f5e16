"""What the parts of a preparation are given to work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from megatron_empg import __version__
from megatron_empg.prepare.manifest import PreparedFile, PreparedFolder, write_prepared
from megatron_empg.prepare.records import FileRecords


@dataclass(frozen=True)
class InitialFolder:
    """What is in the folder before anything is fetched."""

    folder: Path
    prepared: PreparedFolder
    records: FileRecords


class PreparationRun:
    """One run: what is prepared so far is written after every part."""

    def __init__(self, before: InitialFolder, say: Callable[[str], None], quick: bool) -> None:
        self.folder = before.folder
        self.prepared = before.prepared
        self.say = say
        self.quick = quick
        self._records = before.records

    def keep(self, **parts: object) -> None:
        """Note these fields of prepared.json, with the time and the version of now."""
        stamp = {"version": __version__, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        self.prepared = self.prepared.model_copy(update={**parts, **stamp})
        write_prepared(self.folder, self.prepared)

    def file(self, name: str) -> PreparedFile:
        """What prepared.json says of a file that was fetched."""
        record = self._records.file(name)
        assert record is not None, f"{name} was fetched without a record"
        return PreparedFile(
            path=name, size=record.size, sha256=record.sha256, origin=record.origin, checked=record.checked
        )
