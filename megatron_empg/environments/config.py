"""What a recipe says of the environment, and the task source that follows from it."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from megatron_empg.common.section import Mark, Positive, Section
from megatron_empg.common.values import plain_settings
from megatron_empg.common.waits import Waits
from megatron_empg.environments.base import STEP_SHARE, TaskSource
from megatron_empg.environments.registry import is_known, make_task_source, unknown


class EnvironmentConfig(Section):
    """Which environment the agent acts in, how it is set, and for how many turns."""

    name: Annotated[str, Mark.DECIDES_EPISODES]
    """Which environment the agent acts in: one that `empg environments` lists, or ``module:Class``."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The environment's own settings; `empg environments NAME` lists them."""
    max_turns: Annotated[Positive, Mark.DECIDES_EPISODES] = 8
    """Turns after which an episode without an answer ends as truncated; walkthroughs have no more either."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if not is_known(name):
            raise ValueError(unknown(name))
        return name

    @field_validator("settings")
    @classmethod
    def _plain(cls, settings: dict[str, Any]) -> dict[str, Any]:
        try:
            return plain_settings(settings)
        except RecursionError:
            raise ValueError("nested too deeply, or an alias holds itself") from None


def task_source_of(environment: EnvironmentConfig, waits: Waits | None = None) -> TaskSource:
    """The environment's task source, made anew; whoever made it closes it.

    A step of it ends by itself within `waits`, where they are given. Raises ValueError or OSError, and whatever a
    plug-in raises.
    """
    step_timeout = None
    if waits is not None:
        step_timeout = STEP_SHARE * waits.environment
    return make_task_source(
        environment.name,
        max_turns=environment.max_turns,
        step_timeout=step_timeout,
        **environment.settings,
    )
