"""Whether a part of a run does its work: by its /health over HTTP, or by its heartbeat."""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit


def healthy(url: str, token: str, seconds: float = 10.0) -> bool:
    """Whether GET `url`/health answers 200 within so many seconds. `token` is the run's."""
    place = urlsplit(url)
    connection = HTTPConnection(place.hostname or "", place.port, timeout=seconds)
    try:
        connection.request("GET", "/health", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def has_begun(heartbeat: str) -> bool:
    """Whether the rank that writes this file (run/heartbeat.py) has left the phase "start"."""
    try:
        beat = json.loads(Path(heartbeat).read_text(encoding="utf-8"))
        return beat["phase"] != "start"
    except (OSError, ValueError, KeyError, TypeError):
        return False  # not there yet
