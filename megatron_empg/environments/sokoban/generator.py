"""Rooms that can be solved, each made of a text that names it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_empg.common.errors import EmpgError
from megatron_empg.environments.sokoban.reverse_play import SolutionLength, Solutions, solutions
from megatron_empg.environments.sokoban.room import RoomState, SokobanRoom
from megatron_empg.environments.sokoban.topology import dug_floor

MOST_TRIES = 2000
"""Rooms that are tried before the generator gives up."""
TEST_CLASSES = 10
"""Walls and targets fall into so many classes by their hash, of which one is kept for tests."""


@dataclass(frozen=True)
class RoomKind:
    """What rooms are wanted: their size, boxes, and the bounds of their shortest solutions. For instance
    ``RoomKind(size=6, boxes=1, least_steps=1, most_steps=15, least_pushes=1)``."""

    size: int
    boxes: int
    least_steps: int
    most_steps: int
    least_pushes: int

    @property
    def name(self) -> str:
        """What evaluations call them."""
        boxes = "1 box"
        if self.boxes != 1:
            boxes = f"{self.boxes} boxes"
        return f"{self.size}x{self.size} with {boxes}"

    @property
    def cells(self) -> int:
        """Those inside the walls around a room."""
        return (self.size - 2) ** 2

    @property
    def possible(self) -> bool:
        """Whether the cells inside are enough for boxes, targets and a player."""
        return 2 * self.boxes + 1 <= self.cells


class NoSuchRoom(EmpgError, ValueError):
    """The generator has found no room of a kind; the text says what to change."""


def generate(kind: RoomKind, name: str, *, for_tests: bool | None = None, tries: int = MOST_TRIES) -> SokobanRoom:
    """The room that is called `name`, the same one whenever it is made.

    `for_tests` says whether its walls and targets are of the class that tests have alone, or of the others, among
    which no room of the first is found again, not even turned or mirrored.
    Raises NoSuchRoom where about `tries` rooms are none of the kind.
    """
    rng = random.Random(f"sokoban {kind.size} {kind.boxes} {name}")
    for _ in range(tries * TEST_CLASSES if for_tests else tries):
        room = _solved_room(kind, rng)
        if room is None or (for_tests is not None and is_for_tests(room) != for_tests):
            continue
        start = _start(kind, solutions(room, kind.most_steps), rng)
        if start is not None:
            return replace(room, start=start)
    kept = ""
    if for_tests:
        kept = " that are kept for tests"
    raise NoSuchRoom(
        f"sokoban found no room of {kind.name} in {tries} tries{kept} whose shortest solution has "
        f"{kind.least_steps} to {kind.most_steps} steps and {kind.least_pushes} or more pushes: lower boxes, "
        "least_steps or least_pushes, or raise size, most_steps or the turns of an episode"
    )


def _solved_room(kind: RoomKind, rng: random.Random) -> SokobanRoom | None:
    """A room with its boxes on the targets; None where the walk dug too little."""
    floor = dug_floor(kind.size, rng)
    if len(floor) <= kind.boxes + 1:
        return None
    *targets, player = rng.sample(sorted(floor), kind.boxes + 1)
    boxes = frozenset(targets)
    return SokobanRoom(kind.size, floor, boxes, RoomState(boxes, player))


def _start(kind: RoomKind, found: Solutions, rng: random.Random) -> RoomState | None:
    """Of the states within bounds that have no box on a target, one of those that take most pushes."""
    wanted = [state for state, way in found.ways.items() if _within(kind, way) and not found.room.on_target(state)]
    if not wanted:
        return None
    most = max(found.ways[state].pushes for state in wanted)
    return rng.choice([state for state in wanted if found.ways[state].pushes == most])


def _within(kind: RoomKind, way: SolutionLength) -> bool:
    return kind.least_steps <= way.steps <= kind.most_steps and way.pushes >= kind.least_pushes


def is_for_tests(room: SokobanRoom) -> bool:
    """Whether a room's walls and targets are of the class that is kept for tests."""
    least = min(_turned_and_mirrored(_plan(room)))
    return hashlib.sha256(least.encode("ascii")).digest()[0] % TEST_CLASSES == 0


Plan = tuple[str, ...]


def _plan(room: SokobanRoom) -> Plan:
    """A room's rows without what moves in it."""
    symbols = ["o" if n in room.targets else "." if n in room.floor else "#" for n in range(room.size * room.size)]
    return tuple("".join(symbols[row : row + room.size]) for row in range(0, len(symbols), room.size))


def _turned_and_mirrored(plan: Plan) -> Iterator[str]:
    """The plan's eight views."""
    for _ in range(4):
        plan = tuple("".join(column) for column in zip(*reversed(plan), strict=True))
        yield "/".join(plan)
        yield "/".join(reversed(plan))
