"""Trackio: trackio.init of trackio 0.43. It keeps its files in TRACKIO_DIR, or sends to a server or a Space."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from megatron_empg.run.trackers.tracker import TrackedRun, TrackerKind

SERVER = "TRACKIO_SERVER_URL"
SPACE = "TRACKIO_SPACE_ID"
TOKEN = "TRACKIO_WRITE_TOKEN"


class TrackioRun:
    """A run of Trackio, which knows runs by their names."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._run: Any = trackio.init(
            project=run.project,
            name=f"{run.name}-{run.known_or_new()}",
            group=run.name,
            config=dict(run.recipe),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def fault() -> str | None:
    """Without a server or a Space it keeps files, for which it needs nothing."""
    if os.environ.get(SPACE):
        if os.environ.get("HF_TOKEN"):
            return None
        return f"{SPACE} names a Hugging Face Space, and HF_TOKEN is not in the environment: export it"
    server = os.environ.get(SERVER, "")
    if not server or os.environ.get(TOKEN) or "write_token" in parse_qs(urlsplit(server).query):
        return None
    return f"{SERVER} names a server, and {TOKEN} is not in the environment: export it"


TRACKIO = TrackerKind("trackio", "Trackio", fault, TrackioRun)
