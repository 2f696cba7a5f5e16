"""A step's metrics go to metrics.jsonl, and to TensorBoard and the trackers that are asked for."""

import importlib.util
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.jsonl import append_line, read_lines, step_of
from megatron_empg.run.config import SftLoggingConfig
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.trackers.kinds import KINDS, asked_for
from megatron_empg.run.trackers.tracker import TrackedRun
from megatron_empg.run.trackers.tracker_thread import TrackerThread, close_all

Metrics = Mapping[str, float | int | None]
"""Flat names such as ``train/success`` or ``time/rollout`` (seconds); see docs for all of them."""


class MetricsError(EmpgError, RuntimeError):
    """A writer that was asked for cannot work."""


def check_writers(logging: SftLoggingConfig) -> None:
    """Raise MetricsError, before anything starts, when a writer's package or a variable of its is missing."""
    if logging.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise MetricsError(
            "logging.tensorboard is true but the tensorboard package is not installed: "
            "`pip install tensorboard`, or set logging.tensorboard=false"
        )
    for kind, project in asked_for(logging):
        said = f"logging.{kind.key} is {project!r} but"
        if not kind.installed:
            raise MetricsError(
                f"{said} the {kind.key} package is not installed: `pip install 'megatron_empg[{kind.key}]'`, or "
                f"remove logging.{kind.key}"
            )
        fault = kind.fault()
        if fault:
            raise MetricsError(f"{said} {fault}")


class MetricsWriter:
    """Writes the metrics of steps from ``first_step`` on; on resume no step appears twice.

    What metrics.jsonl, steps.jsonl and episodes/ hold of later steps is cut away on opening. Trackers take no step
    twice, or show both: where steps are cut, the continuation is a new run there, in the same group. A tracker
    that fails is a warning; without ``logging`` there is none.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        first_step: int = 0,
        logging: SftLoggingConfig | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        wanted = logging or SftLoggingConfig(tensorboard=False)
        check_writers(wanted)
        self._path = folder.metrics
        self._last_step = first_step - 1
        self._tensorboard: Any = None
        if any(record["step"] >= first_step for record in read_metrics(folder)):
            for kind in KINDS:  # before the cut, which a kill may follow
                folder.tracker_id(kind.key).unlink(missing_ok=True)
        folder.cut(first_step)
        if wanted.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step makes TensorBoard forget what an interrupted run wrote of the same steps.
            self._tensorboard = SummaryWriter(str(folder.tensorboard), purge_step=first_step)
        self._trackers: list[TrackerThread] = []
        for kind, project in asked_for(wanted):
            identity = folder.tracker_id(kind.key)
            run = TrackedRun(project, folder.root.resolve().name, identity, folder.logs, recipe or {})
            self._trackers.append(TrackerThread(kind.title, partial(kind.open, run)))

    def write(self, step: int, metrics: Metrics) -> None:
        """Log one step's metrics. Raises ValueError unless steps rise; None values are left out."""
        if step <= self._last_step:
            raise ValueError(f"metrics of step {step} after those of step {self._last_step}; steps must rise")
        self._last_step = step
        given = {name: value for name, value in metrics.items() if value is not None and name != "step"}
        append_line(self._path, {"step": step, **given})
        finite = {name: value for name, value in given.items() if math.isfinite(value)}
        if self._tensorboard is not None:
            for name, value in finite.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()
        for tracker in self._trackers:
            tracker.log(step, finite)

    def close(self) -> None:
        """Finish TensorBoard and the trackers; metrics.jsonl is complete after every `write`."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        self._tensorboard = None
        close_all(self._trackers)
        self._trackers = []


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """The steps logged so far, in order; a line that names no step is left out."""
    return [record for record in read_lines(folder.metrics) if step_of(record) is not None]
