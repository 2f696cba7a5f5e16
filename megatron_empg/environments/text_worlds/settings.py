"""What may be set of every world of text commands."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from megatron_empg.environments.settings import EnvironmentSettings


def _turns_or_all(given: Any) -> Any:
    if given == "all" or (type(given) is int and given >= 0):
        return given
    raise ValueError('give a whole number of turns from 0 on, or "all"')


RulesTold = Literal["full", "none"]
"""What a policy is told beside the task and the scene: the world's rules and how a turn is written, or nothing."""
NO_RULES = "no rules are told, unlike the papers'"
"""What is not comparable with published results where nothing is told."""
HistoryLength = Annotated[int | Literal["all"], BeforeValidator(_turns_or_all)]


class TextWorldSettings(EnvironmentSettings):
    """The defaults are those of the comparisons that the field makes on such worlds (arXiv 2505.10978)."""

    history_length: HistoryLength = 2
    """Earlier turns that the prompt of a turn shows, being written anew for each; `all` keeps the conversation."""
    invalid_action_penalty: Annotated[float, Field(ge=0)] = 0.1
    """Taken from the reward of a turn that cannot be read."""
    success_reward: Annotated[float, Field(gt=0)] = 10.0
    """Reward of a success."""

    @property
    def windowed(self) -> bool:
        """Whether the prompt of a turn is written anew."""
        return self.history_length != "all"

    @property
    def window(self) -> int:
        """Earlier turns of a windowed prompt."""
        if self.history_length == "all":
            return 0
        return self.history_length
