"""`empg train`, and each batch as the trainer was handed it: ``python recorded_run.py RECIPE [key=value ...]``.

Engines, rollout service and ranks are those of any run. The ranks are this very script, in which rank 0's client
of the rollout service keeps a copy of what it hands on, as BATCHES/STEP.
"""

import os
import sys
from pathlib import Path

from megatron_empg.common.processes import die_with_parent

FOLDER = "BATCHES"
"""The variable that names where batches are kept."""
_WORKER = "megatron_empg.trainer.worker"


def batch_file(folder: Path, step: int) -> Path:
    """What the step was trained on; steps count from 0."""
    return folder / f"{step:06d}"


def launch(recipe: Path, overrides: list[str]) -> None:
    """The run, whose ranks are started as this script."""
    from megatron_empg.launch import commands
    from megatron_empg.launch.local import launch_training

    as_shipped = commands.trainer

    def with_this_script(*arguments: object, **named: object) -> tuple[str, ...]:
        words = list(as_shipped(*arguments, **named))  # type: ignore[arg-type]
        place = words.index(_WORKER)
        words[place - 1 : place + 1] = [__file__]
        return tuple(words)

    commands.trainer = with_this_script
    launch_training(recipe, overrides)


def train() -> None:
    """What a rank does, and the copies."""
    from megatron_empg.rollout.service import client
    from megatron_empg.trainer import worker

    class Recording(client.RolloutServiceClient):
        def rollout(self, step: int) -> bytes:
            data = super().rollout(step)
            batch_file(Path(os.environ[FOLDER]), step).write_bytes(data)
            return data

    client.RolloutServiceClient = Recording  # type: ignore[misc]
    worker.main()


if __name__ == "__main__":
    if "RANK" in os.environ:
        die_with_parent()
        from megatron_empg.trainer.rank_errors import run_rank

        run_rank(train)
    else:
        launch(Path(sys.argv[1]), sys.argv[2:])
