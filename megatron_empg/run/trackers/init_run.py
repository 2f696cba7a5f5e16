"""The runs that `init` of wandb, swanlab and trackio returns, which take steps and end in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class InitRun:
    """A tracker by what such an `init` has returned."""

    run: Any
    """Has ``log(metrics, step=…)`` and ``finish()``."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()
