"""All trackers, and which of them a recipe asks for."""

from __future__ import annotations

from megatron_empg.run.config import SftLoggingConfig
from megatron_empg.run.trackers.mlflow_server import MLFLOW
from megatron_empg.run.trackers.swanlab_cloud import SWANLAB
from megatron_empg.run.trackers.tracker import TrackerKind
from megatron_empg.run.trackers.trackio_files import TRACKIO
from megatron_empg.run.trackers.weights_and_biases import WANDB

KINDS = (WANDB, MLFLOW, SWANLAB, TRACKIO)


def asked_for(logging: SftLoggingConfig) -> list[tuple[TrackerKind, str]]:
    """Each tracker with the project that its key names."""
    found = []
    for kind in KINDS:
        project = kind.project(logging)
        if project is not None:
            found.append((kind, project))
    return found
