"""What a policy is told of Sokoban."""

from __future__ import annotations

from megatron_empg.environments.sokoban.room import (
    BOX,
    BOX_ON_TARGET,
    DIRECTIONS,
    FLOOR,
    PLAYER,
    PLAYER_ON_TARGET,
    TARGET,
    WALL,
)
from megatron_empg.environments.sokoban.settings import SokobanRules
from megatron_empg.environments.text_worlds.prompt import TextWorldPrompt, show_alone

SEPARATOR = "||"
FULL = f"""\
This is Sokoban. You walk through a room, which is shown as a grid, and push boxes.

{WALL} is a wall
{FLOOR} is free floor
{TARGET} is a target, where a box belongs
{BOX} is a box
{BOX_ON_TARGET} is a box on a target
{PLAYER} is you
{PLAYER_ON_TARGET} is you, standing on a target

A box that stands before you is pushed one cell further as you walk against it, if the cell behind it is free: \
neither a wall nor another box. Boxes cannot be pulled, so one that is pushed into a corner is lost. The room is \
solved as soon as every target has its box."""
SHORT = f"""\
Sokoban. {WALL} wall, {FLOOR} floor, {TARGET} target, {BOX} box, {BOX_ON_TARGET} box on target, {PLAYER} you, \
{PLAYER_ON_TARGET} you on target.
Walk against a box to push it. It cannot be pulled, nor pushed against a wall or a box."""


def prompt_of(told: SokobanRules, moves_per_turn: int) -> TextWorldPrompt:
    """The rules in one of their lengths, with the commands that there are."""
    if told == "none":
        return TextWorldPrompt.without_rules(show_alone)
    rules = f"{FULL if told == 'full' else SHORT}\n{commands_told(moves_per_turn)}"
    # The rules have named the commands, which are always the same.
    return TextWorldPrompt(rules, show_alone)


def commands_told(moves_per_turn: int) -> str:
    """What a command may be."""
    *first, last = DIRECTIONS
    told = f"Commands are {', '.join(first)} and {last}."
    if moves_per_turn == 1:
        return told
    example = f" {SEPARATOR} ".join(DIRECTIONS[:2])
    return f"{told} One turn may have up to {moves_per_turn} of them: {example}"


def goal_of(boxes: int, told: SokobanRules) -> str:
    """What is to be done."""
    if told == "none":
        return ""
    if boxes != 1:
        return "push all boxes onto the targets."
    return "push the box onto the target."
