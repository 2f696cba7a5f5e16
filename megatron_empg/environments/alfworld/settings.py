"""What `environment.settings` may say of ALFWorld."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from megatron_empg.environments.settings import DataFolder, PlainPath
from megatron_empg.environments.text_worlds.settings import RulesTold, TextWorldSettings

DATA_VARIABLE = "ALFWORLD_DATA"


def _data_of_the_machine() -> Path | None:
    """Where ALFWorld itself looks for its data."""
    told = os.environ.get(DATA_VARIABLE, "")
    if not told.strip():
        return None
    return Path(told).expanduser()


class AlfWorldSettings(TextWorldSettings):
    """The history, the penalty and the reward are those of the field's comparisons; see docs/alfworld.md."""

    data: DataFolder | None = Field(default_factory=_data_of_the_machine)
    """Games with their manifest.json, as docs/alfworld.md describes them; $ALFWORLD_DATA where nothing is said."""
    python: PlainPath | None = None
    """The Python that has alfworld; .venv-alfworld of `make setup-alfworld`, or /opt/alfworld of an image, where
    nothing is said."""
    rules: RulesTold = "full"
    """What is told beside the task, the scene and its commands: "full" says what the world is and how a turn is
    written, "none" is for a policy that was warmed up on walkthroughs without."""
