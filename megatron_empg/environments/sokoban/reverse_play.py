"""Reverse play: from the solved room backwards, so that all that is met can be solved, and in how many steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from megatron_empg.environments.sokoban.room import DIRECTIONS, Direction, RoomState, SokobanRoom

MOST_STATES = 4000
"""No more are met. The nearest to a solved room are met first, so that what is known of them is exact."""


class SolutionLength(NamedTuple):
    """How a room is solved from a state in as few steps as possible; `pushes` of them move a box."""

    steps: int
    pushes: int


@dataclass
class Solutions:
    """The states from which a room can be solved within so many steps. One that is not there is a dead end, or too
    far away."""

    room: SokobanRoom
    ways: dict[RoomState, SolutionLength] = field(default_factory=dict)

    def next_step(self, state: RoomState) -> Direction:
        """The first step of a shortest solution: always the same one, the first in the order of `DIRECTIONS`.

        Raises KeyError for a state that is not known, or solved.
        """
        nearer = self.ways[state].steps - 1
        for direction in DIRECTIONS:
            way = self.ways.get(self.room.step(state, direction))
            if way is not None and way.steps == nearer:
                return direction
        raise KeyError(state)

    def steps(self, state: RoomState) -> int | None:
        """Steps of a shortest solution; None where none is known."""
        way = self.ways.get(state)
        if way is None:
            return None
        return way.steps


def solutions(room: SokobanRoom, most_steps: int, most_states: int = MOST_STATES) -> Solutions:
    """All states of a room that can be solved in `most_steps`, by breadth-first search from the solved ones."""
    found = Solutions(room)
    border = [RoomState(room.targets, player) for player in sorted(room.floor - room.targets)]
    found.ways.update((state, SolutionLength(0, 0)) for state in border)
    while border and len(found.ways) < most_states:
        border = _one_step_further(found, border, most_steps)
    return found


def _one_step_further(found: Solutions, border: list[RoomState], most_steps: int) -> list[RoomState]:
    """The states that are one step further away than those of `border`, now known."""
    further: list[RoomState] = []
    for state in border:
        way = found.ways[state]
        if way.steps == most_steps:
            return []
        for before in found.room.before(state):
            if before.state not in found.ways:
                found.ways[before.state] = SolutionLength(way.steps + 1, way.pushes + before.pushed)
                further.append(before.state)
    return further
