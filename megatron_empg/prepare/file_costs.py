"""Bytes that a file still has to be fetched of, told without asking a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_empg.prepare.records import FileRecords
from megatron_empg.prepare.sources import Alternative


def bytes_left(root: Path, folder: str, places: Sequence[Alternative], records: FileRecords) -> int:
    """Bytes left to fetch of a file below `folder` from its first place; 0 if one from any place is here."""
    for alternative in places:
        name = f"{folder}/{alternative.called()}"
        if records.file(name) is not None and (root / name).exists():
            return 0
    first = root / folder / f"{places[0].called()}.part"
    there = 0
    if first.exists():
        there = first.stat().st_size
    return max(0, places[0].estimate - there)
