"""Whether a trainer rank is past its start, by its heartbeat."""

from __future__ import annotations

import json
from pathlib import Path


def has_begun(heartbeat: str) -> bool:
    """Whether the rank that writes this file (run/heartbeat.py) has left the phase "start"."""
    try:
        beat = json.loads(Path(heartbeat).read_text(encoding="utf-8"))
        return beat["phase"] != "start"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False  # not there yet
