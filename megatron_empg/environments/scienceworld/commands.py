"""The commands that ScienceWorld's engine takes, and what each does."""

from __future__ import annotations

from dataclasses import dataclass

SIMPLIFICATIONS = ("teleportAction", "openDoors", "openContainers", "selfWateringFlowerPots", "noElectricalAction")
"""As the engine calls them."""
_TELEPORT, _NO_ELECTRICITY = "teleportAction", "noElectricalAction"
_ELECTRICAL_TASKS = ("power-component", "conductivity")
"""Parts of the names of tasks in which "easy" keeps the electrical commands."""


@dataclass(frozen=True)
class Command:
    """`form` is the engine's, with OBJ for a thing; `written` as a policy should write it."""

    form: str
    does: str
    written: str = ""

    @property
    def shown(self) -> str:
        return f"{self.written or self.form}: {self.does}"


_ALWAYS = (
    Command("look around", "see the room you are in"),
    Command("look at OBJ", "see a thing closely"),
    Command("look in OBJ", "see what is in a container"),
    Command("inventory", "see what you carry"),
    Command("task", "read the task again"),
    Command("go OBJ", "walk through a door into the next place", "go to OBJ"),
    Command("open OBJ", "open a door or a container"),
    Command("close OBJ", "close it"),
    Command("pick up OBJ", "take a thing with you"),
    Command("put down OBJ", "leave it where you are"),
    Command("move OBJ to OBJ", "put a thing into or onto another"),
    Command("pour OBJ in OBJ", "pour a liquid", "pour OBJ into OBJ"),
    Command("dunk OBJ in OBJ", "dip a container into a liquid", "dunk OBJ into OBJ"),
    Command("mix OBJ", "let what is in a container react"),
    Command("activate OBJ", "switch a device on"),
    Command("deactivate OBJ", "switch it off"),
    Command("use OBJ on OBJ", "use a tool, such as a thermometer, on a thing"),
    Command("read OBJ", "read a note or a recipe"),
    Command("eat OBJ", "eat something"),
    Command("flush OBJ", "flush a toilet"),
    Command("focus on OBJ", "declare that this is the thing the task is about"),
    Command("wait", "let 10 moments go by"),
    Command("wait1", "let 1 moment go by"),
    Command("reset task", "give up the progress made"),
)
_TELEPORTING = (Command("teleport OBJ", "be in another place at once", "teleport to OBJ"),)
_ELECTRICAL = (
    Command("connect OBJ to OBJ", "connect electrical parts, such as a battery's anode to a wire's terminal 1"),
    Command("disconnect OBJ", "take such a connection apart"),
)
_NOT_ADVISED = ("reset task",)


def commands_of(task: str, simplifications: str) -> list[Command]:
    """Those that a task has under these simplifications."""
    found = list(_ALWAYS)
    names = simplifications.split(",")
    easy = simplifications == "easy"
    if easy or _TELEPORT in names:
        found += _TELEPORTING
    if easy:
        electrical = any(part in task for part in _ELECTRICAL_TASKS)
    else:
        electrical = _NO_ELECTRICITY not in names
    if electrical:
        found += _ELECTRICAL
    return found


def commands_shown(task: str, simplifications: str) -> str:
    """A line for each that is worth trying."""
    return "\n".join(
        command.shown for command in commands_of(task, simplifications) if command.form not in _NOT_ADVISED
    )
