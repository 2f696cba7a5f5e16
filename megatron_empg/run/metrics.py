"""A step's metrics go to metrics.jsonl, and to TensorBoard and Weights & Biases when asked for."""

import importlib.util
import math
import os
from collections.abc import Mapping
from typing import Any

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.files import put_text
from megatron_empg.common.jsonl import append_line, read_lines
from megatron_empg.run.folder import RunFolder

WANDB_RUN_ID = "wandb_run_id"
Metrics = Mapping[str, float | int | None]
"""Flat names such as ``train/success`` or ``time/rollout`` (seconds); see docs for all of them."""


class MetricsError(EmpgError, RuntimeError):
    """A writer that was asked for cannot work."""


def check_writers(*, tensorboard: bool, wandb: str | None) -> None:
    """Raise MetricsError, before anything starts, when a writer's package or key is missing."""
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise MetricsError(
            "logging.tensorboard is true but the tensorboard package is not installed: "
            "`pip install tensorboard`, or set logging.tensorboard=false"
        )
    if wandb is None:
        return
    if importlib.util.find_spec("wandb") is None:
        raise MetricsError(
            f"logging.wandb is {wandb!r} but the wandb package is not installed: "
            "`pip install wandb`, or remove logging.wandb"
        )
    if not os.environ.get("WANDB_API_KEY") and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
        raise MetricsError(
            f"logging.wandb is {wandb!r} but WANDB_API_KEY is not in the environment: "
            "export it, or WANDB_MODE=offline"
        )


class MetricsWriter:
    """Writes the metrics of steps from ``first_step`` on; on resume no step appears twice.

    What metrics.jsonl, steps.jsonl and episodes/ hold of later steps is cut away on opening. Weights & Biases
    takes no step twice: where steps are cut, the continuation is a new run there, in the same group.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        first_step: int = 0,
        tensorboard: bool = False,
        wandb: str | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        check_writers(tensorboard=tensorboard, wandb=wandb)
        self._path = folder.metrics
        self._last_step = first_step - 1
        self._tensorboard: Any = None
        self._wandb: Any = None
        if any(record.get("step", -1) >= first_step for record in read_metrics(folder)):
            (folder.root / WANDB_RUN_ID).unlink(missing_ok=True)  # before the cut, which a kill may follow
        folder.cut(first_step)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step makes TensorBoard forget what an interrupted run wrote of the same steps.
            self._tensorboard = SummaryWriter(str(folder.tensorboard), purge_step=first_step)
        if wandb is not None:
            self._wandb = _open_wandb(folder, wandb, recipe or {})

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
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def close(self) -> None:
        """Finish TensorBoard and W&B; metrics.jsonl is complete after every `write`."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._tensorboard = self._wandb = None


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """The steps logged so far, in order."""
    return read_lines(folder.metrics)


def _open_wandb(folder: RunFolder, project: str, recipe: Mapping[str, Any]) -> Any:
    import wandb

    # The id is kept in the folder, so that a run that was ended in order goes on with the same curves.
    identity = folder.root / WANDB_RUN_ID
    if not identity.exists():
        put_text(identity, wandb.util.generate_id())
    return wandb.init(
        project=project,
        id=identity.read_text(encoding="utf-8").strip(),
        name=folder.root.name,
        group=folder.root.name,
        dir=str(folder.logs),
        config=dict(recipe),
        resume="allow",
    )
