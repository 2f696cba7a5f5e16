"""Weights & Biases: wandb.init of wandb 0.31."""

from __future__ import annotations

import os

from megatron_empg.run.config import SftLoggingConfig
from megatron_empg.run.trackers.init_run import InitRun
from megatron_empg.run.trackers.tracker import TrackedRun, TrackerKind


def begin(run: TrackedRun) -> InitRun:
    """A run of Weights & Biases, which takes no step twice."""
    import wandb

    begun = wandb.init(
        project=run.project,
        id=run.known_or_new(),
        name=run.name,
        group=run.name,
        dir=str(run.logs),
        config=dict(run.recipe),
        resume="allow",
    )
    return InitRun(begun)


def fault() -> str | None:
    """Why it cannot work, or None. Without a key it works only offline."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return None
    return "WANDB_API_KEY is not in the environment: export it, or WANDB_MODE=offline"


def project(logging: SftLoggingConfig) -> str | None:
    """What `logging.wandb` says."""
    return logging.wandb


WANDB = TrackerKind("wandb", "Weights & Biases", project, fault, begin)
