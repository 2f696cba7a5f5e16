"""When files were written to last."""

from __future__ import annotations

from pathlib import Path


def changed_at(path: Path) -> float:
    """Seconds since 1970, by the file system's clock; 0 where there is no such file."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
