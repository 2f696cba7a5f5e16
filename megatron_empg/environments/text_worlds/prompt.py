"""What a policy is told in a world of text commands: all in one message, written anew for each turn or once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from megatron_empg.environments.base import Message
from megatron_empg.environments.text_worlds.turns import HOW_TO_WRITE
from megatron_empg.environments.text_worlds.window import PastTurn, Window
from megatron_empg.environments.text_worlds.world import Scene


def show_with_choices(scene: Scene) -> str:
    """The observation, and the commands that the world would take now."""
    if not scene.choices:
        return scene.observation
    listed = "\n".join(scene.choices)
    return f"{scene.observation}\nCommands that are possible now:\n{listed}"


def show_alone(scene: Scene) -> str:
    """The observation."""
    return scene.observation


@dataclass(frozen=True)
class TextWorldPrompt:
    """`rules` say what the world is and how to act in it, `show` writes a scene down, `how_to_write` is about the
    form of a turn."""

    rules: str
    show: Callable[[Scene], str] = show_with_choices
    how_to_write: str = HOW_TO_WRITE

    @classmethod
    def without_rules(cls, show: Callable[[Scene], str] = show_with_choices) -> Self:
        """A prompt of the task and the scene alone, for a policy that was warmed up that way."""
        return cls("", show, how_to_write="")

    def first(self, goal: str, scene: Scene) -> list[Message]:
        """What the first turn reads."""
        return self._message(self.rules, _goal(goal), self.show(scene))

    def windowed(self, goal: str, window: Window, scene: Scene) -> list[Message]:
        """What a later turn reads where it is told of its last turns alone."""
        if not window.taken:
            return self.first(goal, scene)
        now = f"Now you see:\n{self.show(scene)}"
        return self._message(self.rules, _goal(goal), _past(window), now)

    def _message(self, *parts: str) -> list[Message]:
        told = [part for part in (*parts, self.how_to_write) if part]
        return [Message(role="user", content="\n\n".join(told))]


def _goal(goal: str) -> str:
    if not goal:
        return ""
    return f"Your task: {goal}"


def _past(window: Window) -> str:
    turns = "1 turn"
    if window.taken != 1:
        turns = f"{window.taken} turns"
    if not window.turns:
        return f"You have taken {turns} so far."
    lines = [f"You have taken {turns} so far. The last of them:"]
    lines += [line for turn in window.turns for line in _lines(turn)]
    return "\n".join(lines)


def _lines(turn: PastTurn) -> tuple[str, str]:
    # The rows of a picture stand below each other.
    apart = " "
    if "\n" in turn.observation:
        apart = "\n"
    return (
        f"Turn {turn.number}, you saw:{apart}{turn.observation}",
        f"Turn {turn.number}, you did: {turn.command}",
    )
