"""A room of Sokoban, and what a step in it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

Direction = Literal["up", "down", "left", "right"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

WALL, FLOOR, TARGET, BOX, BOX_ON_TARGET, PLAYER, PLAYER_ON_TARGET = "#_OX√PS"
"""The symbols of the field's text rooms (RAGEN, verl-agent)."""


class RoomState(NamedTuple):
    """What changes in a room. Cells are numbered row by row."""

    boxes: frozenset[int]
    player: int


class PrecedingState(NamedTuple):
    """A state from which a step in `direction` leads to a given one; `pushed` says whether it moved a box."""

    state: RoomState
    direction: Direction
    pushed: bool


@dataclass(frozen=True)
class SokobanRoom:
    """What stays as it is: `size` rows and columns with walls all around, and the cells that are `floor`, with the
    `targets` among them. `start` is the state that an episode begins in.

    For instance, a room in which one step to the right is enough::

        # # # # #
        # P X O #
        # _ _ _ #
        # _ _ _ #
        # # # # #
    """

    size: int
    floor: frozenset[int]
    targets: frozenset[int]
    start: RoomState

    @cached_property
    def strides(self) -> dict[Direction, int]:
        """How far a step goes in the numbers of cells. Walls all around see to it that none leaves the room."""
        return {"up": -self.size, "down": self.size, "left": -1, "right": 1}

    def step(self, state: RoomState, direction: Direction) -> RoomState:
        """The state after a step, which pushes a box that is in the way; the same one where it cannot be made."""
        stride = self.strides[direction]
        ahead = state.player + stride
        if ahead not in self.floor:
            return state
        if ahead not in state.boxes:
            return RoomState(state.boxes, ahead)
        beyond = ahead + stride
        if beyond not in self.floor or beyond in state.boxes:
            return state
        return RoomState(state.boxes - {ahead} | {beyond}, ahead)

    def before(self, state: RoomState) -> Iterator[PrecedingState]:
        """All states from which one step leads here: the player walks backwards, and may pull a box along."""
        for direction, stride in self.strides.items():
            player = state.player - stride
            if player not in self.floor or player in state.boxes:
                continue
            yield PrecedingState(RoomState(state.boxes, player), direction, pushed=False)
            ahead = state.player + stride
            if ahead in state.boxes:
                yield PrecedingState(
                    RoomState(state.boxes - {ahead} | {state.player}, player), direction, pushed=True
                )

    def solved(self, state: RoomState) -> bool:
        """Whether every target has its box."""
        return state.boxes == self.targets

    def on_target(self, state: RoomState) -> int:
        """How many boxes stand on targets."""
        return len(state.boxes & self.targets)

    def text(self, state: RoomState) -> str:
        """The room as a policy reads it. A blank between cells makes each of them a token of its own."""
        rows = range(0, self.size * self.size, self.size)
        return "\n".join(
            " ".join(self._symbol(state, row + column) for column in range(self.size)) for row in rows
        )

    def _symbol(self, state: RoomState, cell: int) -> str:
        if cell not in self.floor:
            return WALL
        target = cell in self.targets
        if cell == state.player:
            if target:
                return PLAYER_ON_TARGET
            return PLAYER
        if cell in state.boxes:
            if target:
                return BOX_ON_TARGET
            return BOX
        if target:
            return TARGET
        return FLOOR


def read_room(text: str) -> SokobanRoom:
    """The room of a text, as `SokobanRoom.text` writes one; its start is what the text shows.

    Raises ValueError for what is no square room with one player, walls all around and a target for each box.
    """
    rows = [line.split() for line in text.strip().splitlines()]
    size = len(rows)
    cells = [cell for row in rows for cell in row]
    known = {WALL, FLOOR, TARGET, BOX, BOX_ON_TARGET, PLAYER, PLAYER_ON_TARGET}
    if any(len(row) != size for row in rows) or not set(cells) <= known:
        raise ValueError(f"the text is not a square room of the symbols {' '.join(sorted(known))}:\n{text}")
    floor, targets, boxes, players = (_cells(cells, symbols) for symbols in ("_OX√PS", "O√S", "X√", "PS"))
    if len(players) != 1 or len(boxes) != len(targets) or not boxes or _touches_the_edge(size, floor):
        raise ValueError(f"a room has one player, a target for each box, and walls all around:\n{text}")
    return SokobanRoom(size, floor, targets, RoomState(boxes, next(iter(players))))


def _cells(cells: list[str], symbols: str) -> frozenset[int]:
    return frozenset(number for number, cell in enumerate(cells) if cell in symbols)


def _touches_the_edge(size: int, floor: frozenset[int]) -> bool:
    return any(row in (0, size - 1) or column in (0, size - 1) for row, column in (divmod(n, size) for n in floor))
