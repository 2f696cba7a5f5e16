"""What the engine says, as a policy reads it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

BANNER = "-= Welcome to TextWorld, ALFRED! =-"
GOAL = "Your task is to: "
NOTHING_HAPPENS = "Nothing happens."
"""What the engine says of a command that it does not take."""
_LEFT_OUT = frozenset({"help"})
_GOAL_OF_GRAMMAR = re.compile(re.escape(GOAL) + r'([^"\\]+)')
_NO_GOAL = "UNKNOWN GOAL"


def clean_observation(feedback: str) -> str:
    """The observation without the banner and the task, which have their own place in the prompt."""
    lines = [line.strip() for line in feedback.splitlines()]
    kept = [line for line in lines if line and line != BANNER and not line.startswith(GOAL)]
    return "\n".join(kept)


def choices_of(commands: Iterable[str]) -> tuple[str, ...]:
    """The commands that the engine takes, as they are shown: `help` costs a turn and tells what a prompt does."""
    return tuple(command for command in commands if command not in _LEFT_OUT)


def goal_of_grammar(grammar: str) -> str | None:
    """The task that a game's grammar names; None where it is left open."""
    found = _GOAL_OF_GRAMMAR.search(grammar)
    if found is None or _NO_GOAL in found[1]:
        return None
    return found[1].strip()


def anchor_of(observation: str, choices: Sequence[str]) -> str:
    """The name of a state: all that a prompt shows of the present.

    The observation alone would not do: "Nothing happens." is said in every state, and a fridge is arrived at with
    and without something in hand. What may be done now tells such states apart.
    """
    shown = "\n".join((observation, *choices))
    return hashlib.sha256(shown.encode("utf-8", "surrogatepass")).hexdigest()
