"""Weights & Biases: wandb.init of wandb 0.31."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from megatron_empg.run.trackers.tracker import TrackedRun, TrackerKind


class WandbRun:
    """A run of Weights & Biases, which takes no step twice."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=run.project,
            id=run.known_or_new(),
            name=run.name,
            group=run.name,
            dir=str(run.logs),
            config=dict(run.recipe),
            resume="allow",
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def fault() -> str | None:
    """Without a key it works offline alone."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return None
    return "WANDB_API_KEY is not in the environment: export it, or WANDB_MODE=offline"


WANDB = TrackerKind("wandb", "Weights & Biases", fault, WandbRun)
