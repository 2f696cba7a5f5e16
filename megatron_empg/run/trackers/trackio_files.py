"""Trackio: trackio.init of trackio 0.43. It keeps its files in TRACKIO_DIR, or sends to a server or a Space."""

from __future__ import annotations

import os
from urllib.parse import parse_qs, urlsplit

from megatron_empg.run.config import SftLoggingConfig
from megatron_empg.run.trackers.init_run import InitRun
from megatron_empg.run.trackers.tracker import TrackedRun, TrackerKind

SERVER = "TRACKIO_SERVER_URL"
SPACE = "TRACKIO_SPACE_ID"
TOKEN = "TRACKIO_WRITE_TOKEN"


def begin(run: TrackedRun) -> InitRun:
    """A run of Trackio, which knows runs by their names."""
    import trackio

    begun = trackio.init(
        project=run.project,
        name=f"{run.name}-{run.known_or_new()}",
        group=run.name,
        config=dict(run.recipe),
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return InitRun(begun)


def fault() -> str | None:
    """Why it cannot work, or None. Without a server or a Space it keeps files, for which it needs nothing."""
    if os.environ.get(SPACE):
        if os.environ.get("HF_TOKEN"):
            return None
        return f"{SPACE} names a Hugging Face Space, and HF_TOKEN is not in the environment: export it"
    server = os.environ.get(SERVER, "")
    if not server or os.environ.get(TOKEN) or "write_token" in parse_qs(urlsplit(server).query):
        return None
    return f"{SERVER} names a server, and {TOKEN} is not in the environment: export it"


def project(logging: SftLoggingConfig) -> str | None:
    """What `logging.trackio` says."""
    return logging.trackio


TRACKIO = TrackerKind("trackio", "Trackio", project, fault, begin)
