"""The 120 scenes whose layouts ALFWorld ships, and which of them a split has."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from megatron_empg.environments.base import Split

UNSEEN = (10, 219, 308, 424)
"""One of each kind of room: the scenes of ALFRED's valid_unseen."""
HELD_OUT = (9, 29, 215, 226, 315, 325, 404, 425)
"""Those of ALFRED's unseen test, in which nothing is generated."""
ROOMS: Mapping[str, range] = {
    "kitchen": range(1, 31),
    "living_room": range(201, 231),
    "bedroom": range(301, 331),
    "bathroom": range(401, 431),
}
_ALL = tuple(itertools.chain(*ROOMS.values()))
SEEN = tuple(number for number in _ALL if number not in UNSEEN and number not in HELD_OUT)
_BASINS = {"Sink": "SinkBasin", "Bathtub": "BathtubBasin"}
_FIXTURES = {
    "CoffeeMachine": 1,
    "Toaster": 1,
    "StoveBurner": 4,
    "GarbageCan": 1,
    "HandTowelHolder": 1,
    "TowelHolder": 1,
    "ToiletPaperHanger": 1,
    "LaundryHamper": 1,
}
"""What a layout may have no point for though the scene has it, and how many there are."""


@dataclass(frozen=True)
class Receptacle:
    """`kind` as in "Drawer"; `point` is where the agent stands before it, in PDDL's whole numbers."""

    id: str
    kind: str
    point: tuple[int, int, int, int]


@dataclass(frozen=True)
class HouseholdScene:
    """A room: what things lie in or on, and the kinds of all that is there."""

    number: int
    receptacles: tuple[Receptacle, ...]
    kinds: tuple[str, ...]

    def receptacle_kinds(self) -> list[str]:
        """Kinds of receptacles, in a fixed order."""
        return sorted({receptacle.kind for receptacle in self.receptacles})


def scenes_of(split: Split, rooms: Collection[str] = tuple(ROOMS)) -> tuple[int, ...]:
    """Those of the rooms, by `ROOMS`. Training and `test_id` share scenes; `test_ood` has others."""
    scenes: tuple[int, ...] = SEEN
    if split == "test_ood":
        scenes = UNSEEN
    return tuple(number for number in scenes if any(number in ROOMS[room] for room in rooms))


@lru_cache(maxsize=128)
def read_scene(number: int) -> HouseholdScene:
    """A scene of the installed package."""
    import alfworld
    from alfworld.gen import constants

    folder = Path(alfworld.__file__).parent / "gen" / "layouts"
    points = json.loads((folder / f"FloorPlan{number}-openable.json").read_text(encoding="utf-8"))
    kinds = sorted(json.loads((folder / f"FloorPlan{number}-objects.json").read_text(encoding="utf-8")))
    holding = set(constants.RECEPTACLES) - constants.MOVABLE_RECEPTACLES_SET
    found = [_receptacle(name, point) for name, point in sorted(points.items())]
    found = [receptacle for receptacle in found if receptacle.kind in holding]
    have = {receptacle.kind for receptacle in found}
    for kind, count in _FIXTURES.items():
        if kind in kinds and kind not in have:
            found += _fixtures(number, kind, count)
    return HouseholdScene(number, tuple(found), tuple(kinds))


def _receptacle(name: str, point: list[float]) -> Receptacle:
    kind = name.partition("|")[0]
    basin = _BASINS.get(kind)
    if basin is not None:
        kind = basin
        if not name.endswith(basin):
            name = f"{name}|{basin}"
    # ALFRED writes places in quarters of a metre.
    x, z, turned, tilted = point
    return Receptacle(name, kind, (round(4 * x), round(4 * z), int(turned), int(tilted)))


def _fixtures(number: int, kind: str, count: int) -> list[Receptacle]:
    """Where they stand is made up: outside of all that the layout has, each at a point of its own."""
    rng = random.Random(f"{number} {kind}")
    found: list[Receptacle] = []
    for index in range(count):
        x, z = rng.randrange(100, 200), rng.randrange(100, 200)
        name = f"{kind}|+{x / 4:05.2f}|+00.9{index}|+{z / 4:05.2f}"
        found.append(Receptacle(name, kind, (x, z, 0, 30)))
    return found
