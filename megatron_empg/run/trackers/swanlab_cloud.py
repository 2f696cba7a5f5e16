"""SwanLab: swanlab.init of swanlab 0.10."""

from __future__ import annotations

import os

from megatron_empg.run.config import SftLoggingConfig
from megatron_empg.run.trackers.init_run import InitRun
from megatron_empg.run.trackers.tracker import TrackedRun, TrackerKind

OFFLINE = ("offline", "local", "disabled")


def begin(run: TrackedRun) -> InitRun:
    """A run of SwanLab. Offline each start is a folder of its own with the same id."""
    # It would else ask on the terminal for a key that is refused.
    os.environ.setdefault("SWANLAB_INTERACTIVE", "false")
    import swanlab

    folder = run.logs / "swanlab"
    folder.mkdir(parents=True, exist_ok=True)
    begun = swanlab.init(
        project=run.project,
        id=run.known_or_new(),
        name=run.name,
        group=run.name,
        log_dir=str(folder),
        config=dict(run.recipe),
        resume="allow",
    )
    return InitRun(begun)


def fault() -> str | None:
    """Why it cannot work, or None. Without a key it works only offline."""
    if os.environ.get("SWANLAB_API_KEY") or os.environ.get("SWANLAB_MODE") in OFFLINE:
        return None
    return "SWANLAB_API_KEY is not in the environment: export it, or SWANLAB_MODE=offline"


def project(logging: SftLoggingConfig) -> str | None:
    """What `logging.swanlab` says."""
    return logging.swanlab


SWANLAB = TrackerKind("swanlab", "SwanLab", project, fault, begin)
