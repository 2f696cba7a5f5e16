"""What a policy is told of ALFWorld."""

from __future__ import annotations

from megatron_empg.environments.text_worlds.prompt import TextWorldPrompt
from megatron_empg.environments.text_worlds.settings import RulesTold

RULES = (
    "You are in a household, which is told to you in text, and carry a task out in it, one command per turn. "
    "You can go to places, open and close them, take things and move them elsewhere, with one thing in hand at a "
    "time; a sink cleans it, a microwave heats it, a fridge cools it, a lamp is switched on by using it. A "
    "command that is not possible now does nothing."
)


def prompt_of(told: RulesTold) -> TextWorldPrompt:
    """The rules where they are told; the scene with its commands in any case."""
    if told == "none":
        return TextWorldPrompt.without_rules()
    return TextWorldPrompt(RULES)
