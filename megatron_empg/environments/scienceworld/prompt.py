"""What a policy is told of ScienceWorld."""

from __future__ import annotations

from megatron_empg.environments.scienceworld.commands import commands_shown
from megatron_empg.environments.scienceworld.settings import Choices
from megatron_empg.environments.text_worlds.prompt import TextWorldPrompt, show_with_choices
from megatron_empg.environments.text_worlds.settings import RulesTold
from megatron_empg.environments.text_worlds.world import Scene

_WORLD = """\
You are in ScienceWorld, a house and the land around it, where experiments of elementary science are made by \
commands. These are known, where OBJ stands for the name of a thing or a place:
"""
_HINTS = """
Where a command may mean several things you are asked which: the next command is then the number alone. To \
focus on a wrong thing, or to put one into an answer box where it does not belong, ends the task in failure."""


def prompt_of(task: str, simplifications: str, choices: Choices, told: RulesTold = "full") -> TextWorldPrompt:
    """The rules, with the commands that there are, where they are told."""
    if choices == "templates":
        show = _with_objects
    else:
        show = show_with_choices
    if told == "none":
        return TextWorldPrompt.without_rules(show)
    rules = _WORLD + commands_shown(task, simplifications) + _HINTS
    return TextWorldPrompt(rules, show)


def _with_objects(scene: Scene) -> str:
    if not scene.choices:
        return scene.observation
    return f"{scene.observation}\nThings that OBJ can be now: {', '.join(scene.choices)}"
