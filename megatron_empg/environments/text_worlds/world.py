"""What a world of text commands is: it shows a scene, and another after each command."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Scene:
    """What a world shows at the beginning and behind a command.

    `choices` are the commands that it would take now, empty where it lists none. `reward` is what the command that
    led here earned, in the environment's own scale; `success` counts when `done`. `anchor` names the state, for
    algorithms that compare turns in the same state; where it is None the observation is the name. For instance
    ``Scene("You are in a kitchen.", ("go to fridge 1", "look"))``.
    """

    observation: str
    choices: tuple[str, ...] = ()
    done: bool = False
    reward: float = 0.0
    success: bool | None = None
    anchor: str | None = None
    info: dict[str, float | str | bool] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """The name of the state."""
        if self.anchor is None:
            return self.observation
        return self.anchor


class World(Protocol):
    """One episode of an engine. Calls may block; to make one costs nothing."""

    def begin(self) -> Scene:
        """The first scene. Called once, before anything else."""
        ...

    def act(self, command: str) -> Scene:
        """Carry out a command, whatever its text; one that means nothing is answered with a scene."""
        ...

    def close(self) -> None:
        """Let go of everything: at any time, and perhaps twice."""
        ...
