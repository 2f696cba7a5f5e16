"""MLflow: MlflowClient of mlflow or mlflow-skinny 3, which talks to a tracking server or keeps a database."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from megatron_empg.run.config import SftLoggingConfig
from megatron_empg.run.trackers.tracker import TrackedRun, TrackerKind

PLACE = "MLFLOW_TRACKING_URI"
FILES_ALLOWED = "MLFLOW_ALLOW_FILE_STORE"
AT_ONCE = 100
"""Parameters that one request may bring; of metrics it may bring more than a step has."""
LONGEST_VALUE = 500
"""Characters of a parameter that every version takes."""
_NOT_IN_NAMES = re.compile(r"[^\w\-./: ]")


class MlflowRun:
    """A run of MLflow in the experiment of the project's name. The recipe's keys are its parameters."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient

        self._client: Any = MlflowClient(tracking_uri=os.environ[PLACE])
        known = run.known()
        if known is None:
            self._id = run.remember(self._begin(run))
        else:
            self._id = known
            self._client.update_run(known, status="RUNNING")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        values = [Metric(_NOT_IN_NAMES.sub("_", name), float(value), now, step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=values)

    def close(self) -> None:
        self._client.set_terminated(self._id, "FINISHED")

    def _begin(self, run: TrackedRun) -> str:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(run.project)
        if experiment:
            number = experiment.experiment_id
        else:
            number = self._client.create_experiment(run.project)
        made = self._client.create_run(number, run_name=run.name, tags={"group": run.name})
        called = str(made.info.run_id)
        parameters = [Param(key, str(value)[:LONGEST_VALUE]) for key, value in flat(run.recipe)]
        for first in range(0, len(parameters), AT_ONCE):
            self._client.log_batch(called, params=parameters[first : first + AT_ONCE])
        return called


def flat(recipe: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Each key of a recipe, dotted, with its value. Example: {"run": {"seed": 1}} has ("run.seed", 1)."""
    for key, value in recipe.items():
        name = _NOT_IN_NAMES.sub("_", f"{before}{key}")
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        else:
            yield name, value


def fault() -> str | None:
    """Where it is to write must be said: it would else begin files in whichever folder the command is given."""
    place = os.environ.get(PLACE, "")
    if not place:
        return (
            f"{PLACE} is not in the environment: export a server's address, or sqlite:////ABSOLUTE/PATH.db, which "
            "needs no server (and the package mlflow instead of mlflow-skinny)"
        )
    if urlsplit(place).scheme in ("", "file") and os.environ.get(FILES_ALLOWED, "").lower() not in ("1", "true"):
        return (
            f"{PLACE} is the folder {place}, which MLflow 3 takes with {FILES_ALLOWED}=true alone: export that, "
            "or a server's address, or sqlite:////ABSOLUTE/PATH.db"
        )
    return None


def project(logging: SftLoggingConfig) -> str | None:
    """What `logging.mlflow` says."""
    return logging.mlflow


MLFLOW = TrackerKind("mlflow", "MLflow", project, fault, MlflowRun)
