"""ScienceWorld's real engine: its tasks, its solutions, its answers to anything."""

import random

import pytest

from megatron_empg.environments.base import EpisodeLimits
from megatron_empg.environments.conformance.hostile_texts import HOSTILE_TEXTS
from megatron_empg.environments.scienceworld.commands import commands_of
from megatron_empg.environments.scienceworld.engine import Engine
from megatron_empg.environments.scienceworld.settings import ScienceWorldSettings
from megatron_empg.environments.scienceworld.source import ScienceWorld
from megatron_empg.environments.scienceworld.variations import PARTS, Variation, all_tasks
from megatron_empg.environments.scienceworld.world import ScienceWorldWorld

SHORT = ("find-living-thing", "find-plant", "lifespan-longest-lived")
"""Tasks whose solutions the engine finds fast."""
PATIENCE = 300.0


@pytest.fixture(scope="module")
def engine(scienceworld):
    engine = Engine(scienceworld, PATIENCE)
    yield engine
    engine.close()


def source_of(engine, turns=60):
    """A source whose episodes and walkthroughs use the one engine."""
    source = ScienceWorld(ScienceWorldSettings(tasks=SHORT), EpisodeLimits(turns))
    source._engine = source._gold.engine = engine
    return source


@pytest.fixture(scope="module")
def source(scienceworld, engine):
    return source_of(engine)


def world_of(engine, task="find-living-thing", number=0, **settings):
    return ScienceWorldWorld(engine, Variation(task, number), ScienceWorldSettings(**settings))


def play(world, commands):
    return [world.begin(), *map(world.act, commands)]


def test_the_record_of_tasks_is_the_engines(engine):
    rng = random.Random(0)
    # The two planes are shuffled as the engine makes the task.
    names = ["inclined-plane-determine-angle", *rng.sample(list(all_tasks()), 5)]
    for name in names:
        part = rng.choice(PARTS)
        variation = rng.choice(all_tasks()[name].variations(part))
        simulation = engine.load(variation, "easy")
        assert engine.description(simulation) == all_tasks()[name].goal(variation.number), variation
    assert engine._process.lines(engine._simulator.getTaskNames) == list(all_tasks())


@pytest.mark.parametrize(
    ("task", "simplifications"),
    [("boil", "easy"), ("power-component", "easy"), ("boil", ""), ("boil", "openDoors")],
)
def test_the_commands_that_a_policy_is_told_are_the_engines(engine, task, simplifications):
    simulation = engine.load(Variation(task, 0), simplifications)
    assert {command.form for command in commands_of(task, simplifications)} == set(engine.forms(simulation))


def test_a_command_is_understood_as_it_is_written_for_a_policy(engine):
    world = world_of(engine, "find-plant", simplifications="teleportAction,openDoors")
    scenes = play(world, ["teleport to kitchen", "pour cup into sink", "go to hallway", "look at door"])
    assert scenes[1].observation == "You teleport to the kitchen."
    assert scenes[3].observation == "You move to the hallway."
    assert not any(scene.observation.startswith("No known action") for scene in scenes[1:])


@pytest.mark.parametrize("task", SHORT)
def test_the_engines_solution_solves_the_task(source, task):
    asked = next(found for found in source.tasks("test_id") if found.kind == task)
    walkthrough = source.walkthrough(asked, 0)
    assert walkthrough.turns[-1].observation is None
    episode = source.make(asked)
    played = play(episode._world, [turn.command for turn in source.scripted(asked, 0).turns])
    end = next(scene for scene in played if scene.done)
    assert (end.success, end.reward, end.info["score"]) == (True, 10.0, 100)
    assert len(walkthrough.turns) == played.index(end)


def test_a_solution_that_is_longer_than_an_episode_is_shown_as_far_as_it_fits(scienceworld, engine):
    source = source_of(engine, turns=3)
    walkthrough = source.walkthrough(source.tasks("train")[0], 0)
    assert len(walkthrough.turns) == 3
    assert walkthrough.turns[-1].observation is not None


def test_another_source_has_the_same_walkthrough_of_the_engine(scienceworld, engine):
    first, second = source_of(engine), source_of(engine)
    task = first.tasks("train")[0]
    shown = first.walkthrough(task, 0)
    play(world_of(engine, "boil", 3), ["wait1"])
    assert second.walkthrough(task, 0) == shown


def test_the_engine_is_asked_for_a_walkthrough_once(source, engine, monkeypatch):
    task = source.tasks("train")[0]
    shown = source.walkthrough(task, 0)
    monkeypatch.setattr(engine, "load", lambda *_, **__: pytest.fail("the engine was asked again"))
    assert source.walkthrough(task, 1) == shown


def test_what_a_caller_does_to_a_walkthrough_is_seen_by_no_other(source):
    task = source.tasks("train")[0]
    first, turns = source.walkthrough(task, 0), len(source.walkthrough(task, 0).turns)
    first.turns.clear()
    first.opening.messages.clear()
    second = source.walkthrough(task, 0)
    assert len(second.turns) == turns > 0
    assert second.opening.messages


def test_the_score_is_paid_as_it_rises(engine, source):
    task = source.tasks("train")[0]
    commands = [turn.command for turn in source.scripted(task, 0).turns]
    world = world_of(engine, task.payload["task"], task.payload["variation"], reward="score")
    scenes = play(world, commands)
    assert sum(scene.reward for scene in scenes) == pytest.approx(10.0)
    assert sum(scene.reward > 0 for scene in scenes) > 2


def test_focusing_on_a_wrong_thing_fails_the_task(engine):
    scene = play(world_of(engine), ["focus on air"])[-1]
    assert (scene.done, scene.success, scene.reward, scene.info["score"]) == (True, False, 0.0, -100)
    assert "engine_error" not in scene.info


def test_an_exception_inside_the_engine_fails_the_task_and_is_noted(engine):
    world = world_of(engine)
    world.begin()
    engine._simulator.agentInterface().get().setErrorState("java.lang.NullPointerException")
    scene = world.act("look around")
    assert (scene.done, scene.success, scene.reward) == (True, False, 0.0)
    assert scene.info == {"score": -100, "engine_error": True}


def test_the_same_commands_meet_the_same_scenes(engine):
    commands = ["open cupboard", "teleport to kitchen", "pick up thermometer", "wait", "look around", "inventory"]
    first = play(world_of(engine, choices="valid"), commands)
    play(world_of(engine, "boil", 3), ["wait1"])
    assert play(world_of(engine, choices="valid"), commands) == first


def test_the_engine_ends_no_episode_for_its_length(engine):
    world = world_of(engine, choices="none")
    world.begin()
    scenes = [world.act("wait1") for _ in range(120)]
    assert not any(scene.done for scene in scenes)


def test_choices_are_things_or_whole_commands(engine):
    things = world_of(engine).begin().choices
    assert "hallway" in things
    commands = world_of(engine, choices="valid").begin().choices
    assert len(commands) > 100
    assert {"look around", "close door to kitchen", "wait1"} <= set(commands)


def test_the_state_is_the_room_and_what_is_carried(engine):
    scenes = play(world_of(engine), ["qzx", "look around", "teleport to kitchen", "pick up thermometer"])
    begun, junk, looked, moved, taken = (scene.anchor for scene in scenes)
    assert begun == junk == looked
    assert len({begun, moved, taken}) == 3


@pytest.mark.parametrize("what", HOSTILE_TEXTS)
def test_any_text_is_answered(engine, what):
    world = world_of(engine, choices="none")
    world.begin()
    pid = engine.pid
    scene = world.act(HOSTILE_TEXTS[what])
    assert isinstance(scene.observation, str)
    assert (scene.done, scene.reward) == (False, 0.0)
    assert "engine_error" not in scene.info
    assert world.act("look around").observation.startswith("This room")
    assert engine.pid == pid


def test_random_commands_of_random_words_are_answered(engine):
    rng = random.Random(0)
    world = world_of(engine, "chemistry-mix", choices="none")
    things = [
        *engine.objects(engine.load(Variation("chemistry-mix", 0), "easy")),
        "0",
        "99999999999",
        "-1",
        "é",
        "\0",
    ]
    world.begin()
    forms = [command.form for command in commands_of("chemistry-mix", "") if not command.form.startswith("focus")]
    for _ in range(60):
        command = rng.choice(forms)
        while "OBJ" in command:
            command = command.replace("OBJ", " ".join(rng.choices(things, k=rng.randrange(3))), 1)
        scene = world.act(command)
        assert not scene.done
        assert "engine_error" not in scene.info, command


def test_a_second_episode_ends_the_first(engine):
    first = world_of(engine)
    first.begin()
    pid = engine.pid
    world_of(engine, "boil").begin()
    assert engine.pid == pid
    with pytest.raises(RuntimeError, match="another episode has begun"):
        first.act("look around")
