"""Rooms of Sokoban: what a step does, that generated rooms can be solved, and which split has which."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import deque

import pytest

from megatron_empg.environments.sokoban.generator import (
    NoSuchRoom,
    RoomKind,
    _plan,
    _turned_and_mirrored,
    generate,
    is_for_tests,
)
from megatron_empg.environments.sokoban.reverse_play import solutions
from megatron_empg.environments.sokoban.room import DIRECTIONS, RoomState, SokobanRoom, read_room
from megatron_empg.environments.sokoban.topology import dug_floor

FIELDS = RoomKind(size=6, boxes=1, least_steps=1, most_steps=15, least_pushes=1)
KINDS = [
    FIELDS,
    RoomKind(size=5, boxes=1, least_steps=3, most_steps=8, least_pushes=2),
    RoomKind(size=6, boxes=2, least_steps=5, most_steps=30, least_pushes=3),
    RoomKind(size=7, boxes=3, least_steps=1, most_steps=40, least_pushes=1),
]
CORRIDOR = """
# # # # # #
# P X _ O #
# _ _ _ _ #
# # # # # #
# # # # # #
# # # # # #
"""


def shown(room: SokobanRoom, *steps: str) -> list[str]:
    """The rows after some steps."""
    state = room.start
    for direction in steps:
        state = room.step(state, direction)
    return room.text(state).splitlines()


def solved_forwards(room: SokobanRoom) -> int | None:
    """Steps of a shortest solution, found the plain way: all states from the start on."""
    queue, seen = deque([(room.start, 0)]), {room.start}
    while queue:
        state, steps = queue.popleft()
        if room.solved(state):
            return steps
        for direction in DIRECTIONS:
            after = room.step(state, direction)
            if after not in seen:
                seen.add(after)
                queue.append((after, steps + 1))
    return None


def test_a_text_is_read_as_it_is_written() -> None:
    room = read_room(CORRIDOR)
    assert room.text(room.start) == CORRIDOR.strip()
    for number in range(20):
        made = generate(KINDS[2], f"read {number}")
        assert read_room(made.text(made.start)) == made


def test_a_box_is_pushed_onto_its_target_and_off_it_again() -> None:
    room = read_room(CORRIDOR)
    assert shown(room, "right")[1] == "# _ P X O #"
    assert shown(room, "right", "right")[1] == "# _ _ P √ #"
    beside = read_room(CORRIDOR.replace("P X _ O", "P √ _ _"))
    assert shown(beside, "right")[1] == "# _ S X _ #"
    assert shown(beside, "right", "down")[1] == "# _ O X _ #"


@pytest.mark.parametrize("direction", ["left", "up"])
def test_a_wall_stops_the_player(direction: str) -> None:
    room = read_room(CORRIDOR)
    assert shown(room, direction) == CORRIDOR.strip().splitlines()


def test_a_box_against_a_wall_or_a_box_stays() -> None:
    walled = read_room(CORRIDOR.replace("P X _ O", "O _ P X"))
    assert shown(walled, "right")[1] == "# O _ P X #"
    two = read_room(CORRIDOR.replace("P X _ O", "P X X O").replace("_ _ _ _", "O _ _ _"))
    assert shown(two, "right")[1] == "# P X X O #"


def test_steps_backwards_are_those_that_lead_here() -> None:
    """Every step from anywhere that changes something is found backwards, and no other."""
    room = generate(KINDS[2], "backwards")
    states = list(solutions(room, 100).ways)
    forwards = {
        (state, direction, room.step(state, direction))
        for state in states
        for direction in DIRECTIONS
        if room.step(state, direction) != state
    }
    known = set(states)
    backwards = {(before.state, before.direction, state) for state in states for before in room.before(state)}
    assert {step for step in forwards if step[2] in known} == {step for step in backwards if step[0] in known}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_generated_room_can_be_solved_within_its_bounds(kind: RoomKind) -> None:
    for number in range(25):
        room = generate(kind, f"train {number}")
        steps = solved_forwards(room)
        assert steps is not None
        assert kind.least_steps <= steps <= kind.most_steps
        assert solutions(room, kind.most_steps).steps(room.start) == steps
        assert room.on_target(room.start) == 0
        assert len(room.targets) == len(room.start.boxes) == kind.boxes


def test_following_the_next_step_solves_a_room_in_the_fewest_steps() -> None:
    for number in range(25):
        room = generate(KINDS[2], f"follow {number}")
        known = solutions(room, 30)
        state, steps = room.start, known.steps(room.start)
        assert steps is not None
        for left in range(steps, 0, -1):
            assert known.steps(state) == left
            state = room.step(state, known.next_step(state))
        assert room.solved(state)


def test_what_is_known_of_a_bounded_search_is_exact() -> None:
    room = generate(RoomKind(8, 2, 1, 40, 1), "bounded")
    bounded, whole = solutions(room, 40, most_states=300), solutions(room, 40, most_states=100_000)
    assert 300 <= len(bounded.ways) < len(whole.ways)
    assert all(whole.steps(state) == way.steps for state, way in bounded.ways.items())
    assert max(way.steps for way in solutions(room, 5).ways.values()) == 5


def test_a_box_in_a_corner_is_a_dead_end() -> None:
    room = read_room(CORRIDOR.replace("P X _ O", "_ P _ X").replace("_ _ _ _", "_ O _ _"))
    known = solutions(room, 100)
    assert known.steps(room.start) is None
    with pytest.raises(KeyError):
        known.next_step(room.start)


def test_the_floor_is_one_piece_inside_the_walls() -> None:
    rng = random.Random(0)
    for _ in range(200):
        size = rng.choice([5, 6, 9])
        floor = dug_floor(size, rng)
        assert all(
            0 < row < size - 1 and 0 < column < size - 1 for row, column in (divmod(n, size) for n in floor)
        )
        reached, border = set(), [min(floor)]
        while border:
            cell = border.pop()
            if cell in floor and cell not in reached:
                reached.add(cell)
                border += [cell - 1, cell + 1, cell - size, cell + size]
        assert reached == floor


def test_a_room_follows_from_its_name_in_every_process() -> None:
    here = [generate(FIELDS, f"train {number}") for number in range(5)]
    assert here == [generate(FIELDS, f"train {number}") for number in range(5)]
    assert len({room.text(room.start) for room in here}) == 5
    program = (
        "from megatron_empg.environments.sokoban.generator import RoomKind, generate\n"
        "rooms = [generate(RoomKind(6, 1, 1, 15, 1), f'train {number}') for number in range(5)]\n"
        "print('|'.join(room.text(room.start).replace('\\n', '/') for room in rooms).encode().hex())"
    )
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    rows = bytes.fromhex(told.stdout.strip()).decode().replace("/", "\n")
    assert rows.split("|") == [room.text(room.start) for room in here]


def test_no_room_of_tests_is_trained_on_even_turned_or_mirrored() -> None:
    trained = [generate(FIELDS, f"train {number}", for_tests=False) for number in range(300)]
    tested = [generate(FIELDS, f"test_id {number}", for_tests=True) for number in range(100)]
    views = {view for room in trained for view in _turned_and_mirrored(_plan(room))}
    assert views.isdisjoint("/".join(_plan(room)) for room in tested)
    assert all(map(is_for_tests, tested))


def test_a_view_of_a_room_is_of_the_same_class() -> None:
    room = generate(FIELDS, "views")
    rows = _plan(room)
    assert len(set(_turned_and_mirrored(rows))) == 8
    mirrored = read_room("\n".join(" ".join(reversed(row.split())) for row in shown(room)))
    turned = read_room("\n".join(" ".join(row) for row in zip(*(row.split() for row in shown(room)), strict=True)))
    assert is_for_tests(room) == is_for_tests(mirrored) == is_for_tests(turned)
    assert mirrored.floor != room.floor


def test_the_player_and_the_boxes_do_not_matter_to_the_class() -> None:
    """So that a room of tests differs from all of training's by more than where the player stands."""
    room = read_room(CORRIDOR)
    moved = SokobanRoom(room.size, room.floor, room.targets, RoomState(room.start.boxes, max(room.floor)))
    assert is_for_tests(room) == is_for_tests(moved)


def test_a_generator_that_finds_nothing_says_what_to_change() -> None:
    with pytest.raises(
        NoSuchRoom, match=r"no room of 6x6 with 1 box in 50 tries .* 14 to 15 steps and 12 .* raise"
    ):
        generate(RoomKind(6, 1, 14, 15, 12), "none", tries=50)
    with pytest.raises(NoSuchRoom, match="in 20 tries that are kept for tests"):
        generate(RoomKind(4, 1, 1, 15, 1), "none", for_tests=True, tries=20)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# # #\n# P #\n# # #",
        CORRIDOR.replace("P", "_"),
        CORRIDOR.replace("O", "P"),
        CORRIDOR.replace("O", "_"),
        CORRIDOR.replace("# P", "P _"),
        CORRIDOR.replace("X", "x"),
        CORRIDOR.replace("X", "X X"),
        CORRIDOR.strip() + "\n# # # # # #",
    ],
)
def test_a_text_that_is_no_room_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="room"):
        read_room(text)
