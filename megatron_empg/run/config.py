"""What a recipe says of the run itself: its length, its folder, and what is written there."""

from typing import Annotated

from pydantic import Field

from megatron_empg.common.section import Mark, NonNegative, Positive, Section
from megatron_empg.common.values import PathText

Project = Annotated[str, Field(min_length=1)]
"""What a tracker calls the place of several runs."""


class RunConfig(Section):
    """How long a run is, where it lies and what its random numbers begin with."""

    folder: Annotated[PathText, Mark.MAY_CHANGE]
    """Where recipe, metrics, checkpoints, episodes and report go; a run found there is continued. In paths a
    leading ``~`` is the home folder."""
    steps: Annotated[Positive, Mark.MAY_CHANGE]
    """How many batches to train on; a checkpoint of a finished run is continued by raising it."""
    seed: Annotated[NonNegative, Mark.DECIDES_EPISODES] = 0
    """Everything random derives from it: question order, sampling, initial weights."""
    checkpoint_every: Annotated[Positive, Mark.MAY_CHANGE] = 10
    """Steps between checkpoints; one is also written at the end and when the run is interrupted."""
    keep_checkpoints: Annotated[Positive, Mark.MAY_CHANGE] = 2
    """How many of the newest checkpoints stay on disk."""


class SftLoggingConfig(Section):
    """Where metrics go beside the run folder."""

    tensorboard: bool = True
    wandb: Project | None = None
    """A Weights & Biases project; needs the wandb package and WANDB_API_KEY, or WANDB_MODE=offline."""
    mlflow: Project | None = None
    """An MLflow experiment; needs the mlflow or mlflow-skinny package and MLFLOW_TRACKING_URI."""
    swanlab: Project | None = None
    """A SwanLab project; needs the swanlab package and SWANLAB_API_KEY, or SWANLAB_MODE=offline."""
    trackio: Project | None = None
    """A Trackio project; needs the trackio package. Without a server its files are in TRACKIO_DIR."""


class LoggingConfig(SftLoggingConfig):
    """What a reinforcement-learning run writes beside metrics, and how often it measures more."""

    episodes_per_step: NonNegative = 4
    """Annotated episodes kept in the run folder at each step: the first of each group, then the second of each."""
    timeline_episodes: NonNegative = 32
    """Of so many of a step's slowest episodes the times of the turns are kept, for the report's timeline."""
    diagnostics_every: NonNegative = 0
    """Steps between measurements of what the papers look at: how an update changes the turns' entropies, and
    the gradient of single turns by entropy. Each costs a score pass, and an update's work for each turn; 0 is
    never."""
    diagnostics_turns: Positive = 16
    """Turns whose gradient is measured then, spread evenly over the batch."""
