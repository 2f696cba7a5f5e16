"""A game in a scene: a task that can be done there, and where all things lie, as PDDL."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from megatron_empg.environments.alfworld.scenes import HouseholdScene, Receptacle

PROPERTY_OF_KIND = {
    "pick_clean_then_place_in_recep": "Cleanable",
    "pick_heat_then_place_in_recep": "Heatable",
    "pick_cool_then_place_in_recep": "Coolable",
}
_PLACE_OF_KIND = {
    "pick_clean_then_place_in_recep": "SinkBasin",
    "pick_heat_then_place_in_recep": "Microwave",
    "pick_cool_then_place_in_recep": "Fridge",
}
"""What the thing is cleaned, heated and cooled in; it is no place to bring it to."""
_LAMPS = ("DeskLamp",)
_LAMP_STANDS_ON = ("Desk", "SideTable", "Dresser", "DiningTable", "CoffeeTable")
_START = (-50, -50, 0, 30)
_SPELLING = (("|", "_bar_"), ("+", "_plus_"), ("-", "_minus_"), ("#", "-"), (".", "_dot_"), (",", "_comma_"))


@dataclass(frozen=True)
class GameGoal:
    """What is to be done: with things of the kind `thing`, at a place or a lamp of the kind `place`."""

    kind: str
    thing: str
    place: str = ""
    lamp: str = ""

    @property
    def copies(self) -> int:
        """Things of that kind that are needed."""
        if self.kind != "pick_two_obj_and_place":
            return 1
        return 2


@dataclass
class RoomContents:
    """{thing: its kind} and {thing: the receptacle it lies in}."""

    scene: HouseholdScene
    rng: random.Random
    kinds: dict[str, str] = field(default_factory=dict)
    lies_in: dict[str, Receptacle] = field(default_factory=dict)

    def put(self, kind: str, places: list[Receptacle]) -> None:
        """One more thing of this kind, in one of these places."""
        x, y, z = (self.rng.uniform(low, high) for low, high in ((-5, 5), (0, 2), (-5, 5)))
        thing = f"{kind}|{x:+06.2f}|{y:+06.2f}|{z:+06.2f}"
        self.kinds[thing] = kind
        self.lies_in[thing] = self.rng.choice(places)


def invent(kind: str, scene: HouseholdScene, rng: random.Random) -> GameGoal | None:
    """A task of this kind for the scene; None where it allows none."""
    possible = _possible(kind, scene)
    if not possible:
        return None
    return rng.choice(possible)


def furnish(asked: GameGoal, scene: HouseholdScene, rng: random.Random) -> RoomContents | None:
    """The scene with its things, none of those asked for where they belong; None where they fit nowhere else."""
    room = RoomContents(scene, rng)
    elsewhere = [place for place in _places_for(asked.thing, scene) if place.kind != asked.place]
    if not elsewhere:
        return None
    for _ in range(rng.randint(asked.copies, asked.copies + 1)):
        room.put(asked.thing, elsewhere)
    for other in _things(scene):
        if other != asked.thing:
            for _ in range(rng.randint(1, 3)):
                room.put(other, _places_for(other, scene))
    if asked.lamp:
        room.put(asked.lamp, _lamp_stands(scene))
    return room


def game_files(asked: GameGoal, room: RoomContents) -> tuple[dict[str, Any], dict[str, Any]]:
    """What game.tw-pddl and traj_data.json hold."""
    from alfworld.gen import goal_library
    from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH

    goal = goal_library.gdict[asked.kind]
    thing, place, lamp = asked.thing.lower(), asked.place.lower(), asked.lamp.lower()
    told = room.rng.choice(goal["templates"]).format(obj=thing, recep=place, toggle=lamp, mrecep="")
    wanted = goal["pddl"].format(obj=asked.thing, recep=asked.place, toggle=asked.lamp, mrecep="")
    problem = "\n".join(_problem(room))
    game = {
        "pddl_domain": _text_of(ALFRED_PDDL_PATH),
        "grammar": _text_of(ALFRED_TWL2_PATH).replace("UNKNOWN GOAL", told),
        "pddl_problem": f"{spelled(problem)}\n{spelled(wanted)}",
        "solvable": True,
    }
    parameters = {
        "object_target": asked.thing,
        "parent_target": asked.place,
        "toggle_target": asked.lamp,
        "mrecep_target": "",
        "object_sliced": False,
    }
    facts = {
        "task_type": asked.kind,
        "scene": {"scene_num": room.scene.number, "floor_plan": f"FloorPlan{room.scene.number}"},
        "pddl_params": parameters,
        "generated": True,
    }
    return game, facts


def spelled(text: str) -> str:
    """The text in the letters that PDDL allows; ``#`` stands for its own minus sign."""
    for sign, word in _SPELLING:
        text = text.replace(sign, word)
    return text


def _possible(kind: str, scene: HouseholdScene) -> list[GameGoal]:
    from alfworld.gen import constants

    things = _things(scene)
    if kind == "look_at_obj_in_light":
        lamps = [lamp for lamp in _LAMPS if lamp in scene.kinds and _lamp_stands(scene)]
        return [GameGoal(kind, thing, lamp=lamp) for thing in things for lamp in lamps]
    needed = PROPERTY_OF_KIND.get(kind)
    treated_in = _PLACE_OF_KIND.get(kind)
    there = scene.receptacle_kinds()
    if treated_in is not None and treated_in not in there:
        return []
    found: list[GameGoal] = []
    for thing in things:
        if needed is not None and thing not in constants.VAL_ACTION_OBJECTS[needed]:
            continue
        holding = [place for place in there if thing in constants.VAL_RECEPTACLE_OBJECTS.get(place, ())]
        found += [GameGoal(kind, thing, place) for place in holding if place != treated_in]
    return found


def _things(scene: HouseholdScene) -> list[str]:
    """The kinds of things that can be carried and have a place in the scene."""
    from alfworld.gen import constants

    fixed = set(constants.RECEPTACLES) - constants.MOVABLE_RECEPTACLES_SET
    known = [kind for kind in scene.kinds if kind in constants.OBJECTS and kind not in fixed]
    return [kind for kind in known if kind not in ("DeskLamp", "FloorLamp") and _places_for(kind, scene)]


def _places_for(kind: str, scene: HouseholdScene) -> list[Receptacle]:
    from alfworld.gen import constants

    allowed = constants.VAL_RECEPTACLE_OBJECTS
    return [place for place in scene.receptacles if kind in allowed.get(place.kind, ())]


def _lamp_stands(scene: HouseholdScene) -> list[Receptacle]:
    return [place for place in scene.receptacles if place.kind in _LAMP_STANDS_ON]


def _problem(room: RoomContents) -> list[str]:
    return ["(define (problem generated)", "(:domain alfred)", *_objects(room), *_facts(room)]


def _objects(room: RoomContents) -> list[str]:
    from alfworld.gen import constants

    fixed = set(constants.RECEPTACLES) - constants.MOVABLE_RECEPTACLES_SET
    places = room.scene.receptacles
    points = sorted({place.point for place in places} | {_START})
    lines = ["(:objects", "agent1 # agent"]
    lines += [f"{kind}Type # otype" for kind in sorted(constants.OBJECTS_SET - fixed)]
    lines += [f"{kind}Type # rtype" for kind in sorted(fixed)]
    lines += [f"{thing} # object" for thing in sorted(room.kinds)]
    lines += [f"{place.id} # receptacle" for place in places]
    lines += [f"{_point(point)} # location" for point in points]
    return [*lines, ")"]


def _facts(room: RoomContents) -> list[str]:
    lines = ["(:init"]
    for place in room.scene.receptacles:
        lines += _facts_of_place(place)
    for place_kind in room.scene.receptacle_kinds():
        lines += _facts_of_room_inside(place_kind, set(room.kinds.values()))
    for thing, kind in sorted(room.kinds.items()):
        lines += _facts_of_thing(thing, kind, room.lies_in[thing])
    return [*lines, f"(atLocation agent1 {_point(_START)})", "(= (total-cost) 0)".replace("-", "#"), ")"]


def _facts_of_place(place: Receptacle) -> list[str]:
    from alfworld.gen import constants

    facts = [
        f"(receptacleType {place.id} {place.kind}Type)",
        f"(receptacleAtLocation {place.id} {_point(place.point)})",
    ]
    if place.kind in constants.OPENABLE_CLASS_SET:
        facts.append(f"(openable {place.id})")
    return facts


def _facts_of_room_inside(place_kind: str, kinds: set[str]) -> list[str]:
    from alfworld.gen import constants

    holds = constants.VAL_RECEPTACLE_OBJECTS.get(place_kind, ())
    return [f"(canContain {place_kind}Type {kind}Type)" for kind in sorted(kinds) if kind in holds]


def _facts_of_thing(thing: str, kind: str, place: Receptacle) -> list[str]:
    from alfworld.gen import constants

    facts = [
        f"(objectType {thing} {kind}Type)",
        f"(inReceptacle {thing} {place.id})",
        f"(objectAtLocation {thing} {_point(place.point)})",
    ]
    if kind not in _LAMPS:
        facts.append(f"(pickupable {thing})")
    for name, kinds in sorted(constants.VAL_ACTION_OBJECTS.items()):
        if kind in kinds:
            facts.append(f"({name.lower()} {thing})")
    if kind in constants.MOVABLE_RECEPTACLES_SET:
        facts.append(f"(isReceptacleObject {thing})")
    return facts


def _point(point: tuple[int, int, int, int]) -> str:
    return "loc|" + "|".join(map(str, point))


def _text_of(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()
