"""Which rooms there are: the splits."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from megatron_empg.environments.base import SPLITS, Split
from megatron_empg.environments.sokoban.generator import NoSuchRoom, RoomKind, generate
from megatron_empg.environments.sokoban.room import SokobanRoom
from megatron_empg.environments.sokoban.settings import SokobanSettings

KEPT = 1024
"""Rooms that are kept for the other episodes of a group, and for the next evaluation."""
TRIES_AT_THE_START = 200
"""Fewer than a room is given later, so that settings which a run would fail of now and then are refused."""


class SokobanRooms:
    """Rooms of training and of test_id are of the wanted kind, and have no walls and targets in common. Those of
    test_ood are by turns one row and column larger, and of one more box, where there are such.
    """

    def __init__(self, settings: SokobanSettings, steps: int) -> None:
        """`steps`: those of an episode. Raises ValueError where there are no such rooms."""
        self._settings = settings
        self._kind = _wanted(settings, steps)
        for for_tests in (False, True):
            generate(self._kind, "the first", for_tests=for_tests, tries=TRIES_AT_THE_START)
        larger, fuller = replace(self._kind, size=settings.size + 1), replace(self._kind, boxes=settings.boxes + 1)
        self._others = tuple(kind for kind in (larger, fuller) if _can_be_made(kind))
        self._made = lru_cache(maxsize=KEPT)(self._make)

    def count(self, split: Split) -> int:
        """How many rooms a split has. Raises ValueError for an unknown split."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; allowed: {', '.join(SPLITS)}")
        if split == "train":
            return self._settings.train_rooms
        if split == "test_id" or self._others:
            return self._settings.test_rooms
        return 0

    def kind(self, split: Split, number: int) -> RoomKind:
        """What kind of room that is."""
        if split == "test_ood":
            return self._others[number % len(self._others)]
        return self._kind

    def room(self, split: Split, number: int) -> SokobanRoom:
        """The room, made unless it is still there."""
        return self._made(split, number)

    def _make(self, split: Split, number: int) -> SokobanRoom:
        for_tests = None
        if split != "test_ood":
            for_tests = split == "test_id"
        return generate(self.kind(split, number), f"{split} {number}", for_tests=for_tests)


def _wanted(settings: SokobanSettings, steps: int) -> RoomKind:
    most = min(settings.most_steps or steps, steps)
    kind = RoomKind(settings.size, settings.boxes, settings.least_steps, most, settings.least_pushes)
    if not kind.possible:
        raise ValueError(
            f"sokoban boxes is {kind.boxes}: boxes, targets and a player need {2 * kind.boxes + 1} cells, but a "
            f"room of size {kind.size} has {kind.cells} inside its walls; raise size, or lower boxes"
        )
    least = max(settings.least_steps, settings.least_pushes)
    if least > most:
        raise ValueError(
            f"sokoban least_steps is {settings.least_steps} and least_pushes {settings.least_pushes}: a solution "
            f"has {most} steps at most, by most_steps and the turns of an episode; lower those, or raise these"
        )
    return kind


def _can_be_made(kind: RoomKind) -> bool:
    if not kind.possible:
        return False
    try:
        generate(kind, "the first", tries=TRIES_AT_THE_START)
    except NoSuchRoom:
        return False
    return True
