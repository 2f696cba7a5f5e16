"""Sokoban as an environment: commands, rewards, prompts, splits, the scripted agent, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from megatron_empg.environments.base import SPLITS, StepResult, TaskSource
from megatron_empg.environments.registry import make_task_source
from megatron_empg.environments.sokoban.reverse_play import solutions
from megatron_empg.environments.sokoban.room import DIRECTIONS, read_room
from megatron_empg.environments.sokoban.world import PlayRules, SokobanWorld
from tests.support.acting import begun, step, steps

ROOM = """
# # # # # #
# P X _ O #
# _ _ _ _ #
# # # # # #
# # # # # #
# # # # # #
"""


def sokoban(max_turns: int = 15, **settings: object) -> TaskSource:
    return make_task_source("sokoban", max_turns=max_turns, **settings)


def played(play: PlayRules, *commands: str) -> list[tuple[float, bool]]:
    """(reward, done) of each command in the room above."""
    world = SokobanWorld(lambda: read_room(ROOM), play)
    world.begin()
    scenes = [world.act(command) for command in commands]
    return [(scene.reward, scene.done) for scene in scenes]


def turn(command: str) -> str:
    return f"<think> so</think><action> {command}</action>"


def test_a_solved_room_is_a_success_and_ends_the_episode() -> None:
    assert played(PlayRules(), "right", "down", "up", "right") == [(0.0, False)] * 3 + [(10.0, True)]


def test_steps_earn_what_gym_sokoban_gives_for_them() -> None:
    assert played(PlayRules(reward="gym"), "right", "left", "up") == [(-0.1, False)] * 3
    assert played(PlayRules(reward="gym"), "right", "right")[1] == (pytest.approx(10.9), True)


def test_a_box_pushed_off_its_target_costs_what_gym_sokoban_takes() -> None:
    two = ROOM.replace("P X _ O", "P √ _ _").replace("_ _ _ _ #", "X O _ _ #", 1)
    world = SokobanWorld(lambda: read_room(two), PlayRules(reward="gym"))
    assert world.begin().info["boxes_on_target"] == 1
    assert world.act("right").reward == pytest.approx(-1.1)


def test_several_steps_in_one_turn_end_with_the_one_that_solves_the_room() -> None:
    several = PlayRules(moves_per_turn=3, reward="gym")
    assert played(several, "down || up", "Right||RIGHT || left") == [
        (pytest.approx(-0.2), False),
        (pytest.approx(10.8), True),
    ]


@pytest.mark.parametrize(
    "command",
    ["jump", "upwards", "up down", "up || down", "up ||", "||", "ｕｐ", "√", "\ud800", "up\0", "go up" * 20_000],
)
def test_an_unknown_command_changes_nothing_and_costs_the_penalty(command: str) -> None:
    world = SokobanWorld(lambda: read_room(ROOM), PlayRules())
    first = world.begin()
    scene = world.act(command)
    assert (scene.reward, scene.done, scene.state) == (-0.1, False, first.state)
    assert scene.observation.startswith("There is no such command. Commands are up, down, left and right.\n# # #")
    assert world.act("right").observation.splitlines()[1] == "# _ P X O #"
    assert played(PlayRules(reward="gym"), command) == [(pytest.approx(-0.2), False)]


def test_too_many_steps_in_a_turn_are_no_command() -> None:
    assert played(PlayRules(moves_per_turn=2), "up || up || up") == [(-0.1, False)]


def test_a_room_that_is_lost_goes_on() -> None:
    world = SokobanWorld(lambda: read_room(ROOM.replace("P X _ O", "O _ P X")), PlayRules())
    world.begin()
    assert [world.act(direction).done for direction in DIRECTIONS * 5] == [False] * 20


def test_every_state_has_the_room_as_its_name() -> None:
    source = sokoban()
    task = source.tasks("train")[0]
    episode = begun(source.make(task))
    first, again = steps(episode, [turn("nonsense"), "no turn at all"])
    assert first.anchor == again.anchor
    assert first.anchor is not None
    assert first.anchor in (first.observation or "")
    assert first.anchor.count("\n") == 5
    assert (first.malformed, again.malformed) == (False, True)


def test_the_policy_is_told_the_rules_the_room_and_how_to_write() -> None:
    source = sokoban()
    (message,) = source.walkthrough(source.tasks("train")[3], 0).opening.messages
    for told in (
        "√ is a box on a target",
        "Commands are up, down, left and right.",
        "push the box onto",
        "<action>",
    ):
        assert told in message["content"]


@pytest.mark.parametrize(("rules", "most"), [("full", 1400), ("short", 560), ("none", 71)])
def test_shorter_rules_leave_more_room(rules: str, most: int) -> None:
    source = sokoban(rules=rules)
    (message,) = source.walkthrough(source.tasks("train")[3], 0).opening.messages
    assert len(message["content"]) <= most
    assert "# # # # # #" in message["content"]


def test_the_rules_tell_of_several_steps_only_where_they_are_allowed() -> None:
    source = sokoban(moves_per_turn=4, rules="short")
    (message,) = source.walkthrough(source.tasks("train")[3], 0).opening.messages
    assert "One turn may have up to 4 of them: up || down" in message["content"]


def test_splits_have_rooms_of_their_own() -> None:
    source = sokoban(train_rooms=40, test_rooms=20)
    rooms = {split: [source._rooms.room(split, number) for number in range(20)] for split in SPLITS}
    assert [len(source.tasks(split)) for split in SPLITS] == [40, 20, 20]
    assert len({room.text(room.start) for split in SPLITS for room in rooms[split]}) == 60
    assert {room.size for room in rooms["train"] + rooms["test_id"]} == {6}
    assert [(room.size, len(room.targets)) for room in rooms["test_ood"][:4]] == [(7, 1), (6, 2), (7, 1), (6, 2)]
    assert [task.kind for task in source.tasks("test_ood")[:2]] == ["7x7 with 1 box", "6x6 with 2 boxes"]
    with pytest.raises(ValueError, match="split 'dev' is unknown; allowed: train, test_id, test_ood"):
        source.tasks("dev")


def test_a_kind_of_room_that_cannot_be_is_left_out_of_test_ood() -> None:
    source = sokoban(size=5, boxes=2, most_steps=6)
    assert {task.kind for task in source.tasks("test_ood")} <= {"6x6 with 2 boxes", "5x5 with 3 boxes"}
    assert sokoban(size=5, boxes=1, most_steps=1).tasks("test_ood")[1].kind == "6x6 with 1 box"


@pytest.mark.parametrize("moves", [1, 3])
@pytest.mark.parametrize("mistakes", [0.0, 0.4, 1.0])
def test_the_scripted_agent_solves_every_room_within_the_turns(mistakes: float, moves: int) -> None:
    source = sokoban(10, expert_mistakes=mistakes, moves_per_turn=moves)
    for seed, task in enumerate(source.sample("train", 40, seed=1) + source.sample("test_ood", 20, seed=1)):
        turns = source.walkthrough(task, seed).turns
        assert len(turns) <= 10
        results = steps(begun(source.make(task)), [taken.action for taken in turns])
        assert results[-1].success is True
        assert not any(result.malformed for result in results)
        assert [result.observation for result in results] == [taken.observation for taken in turns]


def lengths(source: TaskSource) -> list[int]:
    return [len(source.walkthrough(task, 0).turns) for task in source.sample("test_id", 60, seed=0)]


def test_without_mistakes_its_solutions_are_the_shortest_and_with_them_longer() -> None:
    source = sokoban(expert_mistakes=0.0)
    shortest = []
    for task in source.sample("test_id", 60, seed=0):
        room = source._rooms.room("test_id", task.payload["number"])
        shortest.append(solutions(room, 15).steps(room.start))
    assert lengths(source) == shortest
    assert sum(lengths(sokoban(expert_mistakes=0.3))) > 1.2 * sum(shortest)


def test_it_thinks_of_its_next_push() -> None:
    source = sokoban(expert_mistakes=0.0)
    for task in source.sample("train", 20, seed=2):
        room = source._rooms.room("train", task.payload["number"])
        state, pushed = room.start, []
        turns = [taken.action for taken in source.walkthrough(task, 0).turns]
        for action in turns:
            direction = action.split("<action> ")[1].removesuffix("</action>")
            after = room.step(state, direction)
            if after.boxes != state.boxes:
                pushed.append((action, direction))
            state = after
        assert pushed[-1][0] == turns[-1]
        assert all(f"<think> push {direction}</think>" in action for action, direction in pushed)


def test_bounds_of_difficulty_hold() -> None:
    source = sokoban(least_steps=5, most_steps=7, least_pushes=3)
    for number in range(20):
        room = source._rooms.room("train", number)
        way = solutions(room, 15).ways[room.start]
        assert 5 <= way.steps <= 7
        assert way.pushes >= 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"size": 3, "boxes": 2},
            "boxes is 2: boxes, targets and a player need 5 cells, .* of size 3 has 1 inside",
        ),
        ({"size": 4}, "found no room of 4x4 with 1 box"),
        ({"least_steps": 16}, "least_steps is 16 .* a solution has 15 steps at most"),
        ({"least_pushes": 4, "most_steps": 3}, "least_pushes 4: a solution has 3 steps at most"),
        ({"least_pushes": 12}, "found no room of 6x6 with 1 box in 200 tries .* 12 or more pushes: lower boxes"),
        ({"boxes": 0}, "boxes is 0"),
        ({"size": 2}, "size is 2"),
        ({"size": 1000}, "size is 1000"),
        ({"expert_mistakes": 1.5}, "expert_mistakes is 1.5"),
        ({"reward": "sparse"}, "reward 'sparse' is unknown; allowed: success, gym"),
        ({"moves": 3}, "moves: there is no such setting; allowed: .*moves_per_turn"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sokoban(**settings)


def test_the_source_loads_no_engine_and_no_torch() -> None:
    program = (
        "import sys, megatron_empg.environments.sokoban.source\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'numpy', 'transformers'}))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "up",
        "<action>up</action>",
        turn(""),
        "<think>" * 20_000,
        turn("x" * 100_000),
        turn("\ud800🏁\0"),
        "√" * 50_000,
    ],
)
def test_whatever_is_written_the_episode_goes_on_and_earns_nothing(text: str) -> None:
    source = sokoban(reward="gym")
    result: StepResult = step(begun(source.make(source.tasks("train")[0])), text)
    assert (result.done, result.reward < 0) == (False, True)
