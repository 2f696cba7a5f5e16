"""ALFWorld's source, with games made by hand: tasks, demonstrations, refusals. No engine is there."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_empg.environments.alfworld import python, world
from megatron_empg.environments.alfworld.manifest import GAME_FILE, GAMES, KINDS, GamesManifest, write_manifest
from megatron_empg.environments.alfworld.settings import AlfWorldSettings
from megatron_empg.environments.alfworld.source import AlfWorld
from megatron_empg.environments.alfworld.transcript import TRANSCRIPT_FILE, TranscriptWorld, read_transcript
from megatron_empg.environments.base import SPLITS, EpisodeLimits
from megatron_empg.environments.registry import make_task_source
from megatron_empg.environments.settings import MANIFEST, data_paths
from megatron_empg.environments.shapes import task_faults
from megatron_empg.environments.text_worlds.world import Scene
from megatron_empg.environments.workers import WorkerPool, errors
from tests.unit.environments.alfworld_folder import ROOM, write_folder, write_game


@pytest.fixture
def folder(tmp_path) -> Path:
    write_folder(tmp_path, 12)
    return tmp_path


@pytest.fixture
def source(folder) -> AlfWorld:
    return make_task_source("alfworld", max_turns=50, data=folder)


def test_tasks_name_their_game_and_have_the_six_kinds(source):
    assert source.kinds == KINDS
    for split in SPLITS:
        tasks = source.tasks(split)
        assert len(tasks) == 12
        assert {task.kind for task in tasks} == set(KINDS)
        assert not [fault for task in tasks for fault in task_faults(task)]
    first = source.tasks("test_ood")[0]
    assert first.id == "valid_unseen/pick_and_place_simple-Mug-None-Desk-301/trial_0"
    assert source.goal(first) == "put a mug in desk."


def test_generated_games_are_named_so(source, tmp_path):
    assert source.generated
    assert source.data_name == "ALFWorld engine, locally generated games"
    assert source.metrics() == {"environment/generated_games": 1.0}
    write_folder(tmp_path / "others", generated=False)
    other = make_task_source("alfworld", data=tmp_path / "others")
    assert (other.generated, other.metrics()) == (False, {"environment/generated_games": 0.0})


def test_what_cannot_be_compared_of_games_and_prompt_is_told(tmp_path):
    names = [
        f"train/{kind}-Mug-None-Desk-{scene}/trial_T"
        for kind, scene in zip(KINDS, (3, 210, 308, 424, 4, 5), strict=True)
    ]
    for folder, number in (("some", 2), ("all", 6)):
        games = [
            write_game(tmp_path / folder, name, kind) for name, kind in zip(names[:number], KINDS, strict=False)
        ]
        write_manifest(
            tmp_path / folder, GamesManifest(False, {"train": tuple(games), "test_id": (), "test_ood": ()})
        )
    told = {folder: AlfWorld.caveats(AlfWorldSettings(data=tmp_path / folder)) for folder in ("some", "all")}
    assert told["some"] == (
        "fewer kinds of tasks: pick_and_place_simple, look_at_obj_in_light",
        "fewer kinds of rooms: kitchen, living_room",
    )
    assert told["all"] == ()
    bare = AlfWorldSettings(data=tmp_path / "all", rules="none")
    assert AlfWorld.caveats(bare) == ("no rules are told, unlike the papers'",)
    write_folder(tmp_path / "made")
    assert AlfWorld.caveats(AlfWorldSettings(data=tmp_path / "made"))[0].startswith("locally generated games: ")


def test_a_run_is_known_by_the_manifest_of_its_games(source, folder):
    assert data_paths(source.settings) == {"data": folder / MANIFEST}


def test_games_are_looked_for_where_alfworld_looks(folder, monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", str(folder))
    source = make_task_source("alfworld")
    assert len(source.tasks("train")) == 12
    assert data_paths(source.settings) == {"data": folder / MANIFEST}


@pytest.mark.parametrize("told", ["", " "])
def test_without_data_one_is_told_how_to_get_it(monkeypatch, told):
    monkeypatch.setenv("ALFWORLD_DATA", told)
    with pytest.raises(
        ValueError, match=r"alfworld data: must be given, or \$ALFWORLD_DATA be set: .*generate DIR"
    ):
        make_task_source("alfworld")


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no manifest.json"):
        make_task_source("alfworld", data=tmp_path / "absent")


def test_a_walkthrough_is_the_experts_game_without_an_engine(source):
    task = source.tasks("train")[0]
    walkthrough = source.walkthrough(task, seed=0)
    told = walkthrough.opening.messages[0]["content"]
    assert "Your task: put a mug in desk." in told
    assert ROOM in told
    assert "go to shelf 1" in told
    assert len(walkthrough.turns) == 4
    assert walkthrough.turns[-1].observation is None
    assert walkthrough.turns[0].action.endswith("<action> go to shelf 1</action>")
    assert walkthrough == source.walkthrough(task, seed=0)
    assert walkthrough != source.walkthrough(task, seed=1)
    assert source.rehearse(task) == [turn.action for turn in walkthrough.turns]


def test_a_policy_that_was_warmed_up_without_rules_reads_task_scene_and_commands_alone(folder):
    source = make_task_source("alfworld", data=folder, rules="none")
    told = source.walkthrough(source.tasks("train")[0], seed=0).opening.messages[0]["content"]
    commands = "go to desk 1\ngo to shelf 1\ninventory\nlook"
    assert told == f"Your task: put a mug in desk.\n\n{ROOM}\nCommands that are possible now:\n{commands}"


def test_games_without_transcripts_have_no_demonstrations_but_are_rehearsed(folder):
    from megatron_empg.environments.alfworld import index

    (folder / MANIFEST).unlink()
    assert index.main([str(folder)]) == 0
    source = make_task_source("alfworld", data=folder)
    assert source.demonstrations() is None
    looks, has = source.rehearse(source.tasks("train")[0])
    assert "<action> look</action>" in looks
    assert "<action> inventory</action>" in has


def test_a_transcript_that_is_not_the_listed_one_is_refused(source, folder):
    task = source.tasks("train")[0]
    path = folder / GAMES / task.id / TRANSCRIPT_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"is not the transcript that the manifest lists"):
        source.walkthrough(task, seed=0)


def test_a_transcript_answers_its_own_commands_alone(source, folder):
    game = source._game(source.tasks("train")[0])
    played = TranscriptWorld(read_transcript(folder / GAMES / game.id, game), 10.0)
    assert played.begin().observation == ROOM
    with pytest.raises(ValueError, match="goes on with 'go to shelf 1', not with 'look'"):
        played.act("look")


class FakeState:
    def __init__(self, feedback, won=False):
        self.feedback, self.won = feedback, won
        self.admissible_commands = ["go to desk 1", "help", "look"]


class FakeEngine:
    """Says what it was told, and is solved by going to the desk."""

    def __init__(self):
        self.told, self.closed = [], 0

    def reset(self):
        return FakeState(f"-= Welcome to TextWorld, ALFRED! =-\n\n{ROOM}\n\nYour task is to: put a mug in desk.")

    def step(self, command):
        self.told.append(command)
        won = command == "go to desk 1"
        return FakeState(f"You {command}.", won), int(won), won

    def close(self):
        self.closed += 1


@pytest.fixture
def played(source, monkeypatch):
    """A game of the source over the fake engine."""
    engine = FakeEngine()
    monkeypatch.setitem(sys.modules, "megatron_empg.environments.alfworld.engine", engine)
    engine.open_game = lambda path: engine
    game = source.world(source.tasks("train")[0])
    game.engine = engine
    return game


def test_a_game_shows_observations_and_choices_without_banner_task_and_help(played):
    scene = played.begin()
    assert (scene.observation, scene.choices) == (ROOM, ("go to desk 1", "look"))
    assert not scene.done


def test_a_command_that_is_not_listed_changes_nothing_and_never_reaches_the_engine(played):
    scene = played.begin()
    for text in (
        "dance",
        "go to desk 2",
        "q" * 100_000,
        "\ud800 \0 __import__('os')",
        "{0.__class__}",
        "ｌｏｏｋ",
    ):
        answered = played.act(text)
        assert (answered.observation, answered.done, answered.reward) == ("Nothing happens.", False, 0.0)
        assert answered.choices == scene.choices
        assert answered.info == {"admissible": False}
    assert played.engine.told == []


def test_commands_may_be_written_in_capitals(played):
    played.begin()
    assert played.act("LOOK").observation == "You look."


def test_the_command_that_solves_a_game_earns_the_reward(played):
    played.begin()
    assert played.act("look").reward == 0.0
    last = played.act("go to desk 1")
    assert (last.done, last.success, last.reward) == (True, True, 10.0)


def test_a_game_may_be_closed_at_any_time_and_twice(played):
    played.close()
    played.begin()
    played.close()
    played.close()
    assert played.engine.closed == 1


def test_a_corrupted_game_costs_its_episode_and_says_which(source, folder):
    task = source.tasks("train")[0]
    path = folder / GAMES / task.id / GAME_FILE
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(
        ValueError, match=rf"game '{task.id}': .* \(10 bytes\) is not the file that the manifest lists"
    ):
        source.world(task).begin()
    path.unlink()
    with pytest.raises(OSError, match=rf"game '{task.id}' cannot be read"):
        source.world(task).begin()


class Misbehaving(AlfWorld):
    """Its engine does what the command says."""

    @classmethod
    def worker_python(cls, settings):
        return None

    def warm_up(self):
        """It has no engine to load."""

    def world(self, task):
        return Bad()


class Bad:
    def begin(self):
        return Scene(ROOM, ("hang", "crash", "raise"))

    def act(self, command):
        if command == "hang":
            time.sleep(600)
        if command == "crash":
            import os

            os.abort()
        if command == "raise":
            raise KeyError("the planner knows no such thing")
        return Scene("Nothing happens.")

    def close(self):
        pass


@pytest.mark.parametrize(
    ("command", "error", "said"),
    [
        ("hang", errors.WorkerTimeout, "step took more than 3 s"),
        ("crash", errors.WorkerDied, "was killed by SIGABRT in step"),
        ("raise", errors.EnvironmentRaised, "the planner knows no such thing"),
    ],
)
def test_an_engine_that_misbehaves_costs_its_episode_and_no_other(source, command, error, said):
    async def play():
        pool = WorkerPool(
            f"{__name__}:Misbehaving", source.settings, EpisodeLimits(5, 3.0), memory_gib=2, worker_memory_gib=1
        )
        try:
            task = source.tasks("train")[0]
            sound, bad = pool.make(task), pool.make(task)
            await sound.reset()
            await bad.reset()
            with pytest.raises(error, match=said):
                await bad.step(f"<think> x</think><action> {command}</action>")
            await bad.close()
            after = await sound.step("<think> x</think><action> wait</action>")
            await sound.close()
            return after
        finally:
            await pool.close()

    assert asyncio.run(play()).done is False


def test_a_source_imports_no_engine():
    program = (
        "import sys, megatron_empg.environments.alfworld.source; "
        "engines = ('alfworld', 'textworld', 'fast_downward', 'torch', 'numpy'); "
        "sys.exit(any(name in sys.modules for name in engines))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_the_engine_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(python, "PLACES", (Path("/nowhere/bin/python"),))
    with pytest.raises(
        ValueError, match=r"no Python with the engine was found; looked at /nowhere.*setup-alfworld"
    ):
        AlfWorld.worker_python(AlfWorld.Settings())


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/nowhere/python", "cannot be asked: .*No such file"),
        (sys.executable, "lacks alfworld, textworld, fast_downward"),
    ],
)
def test_a_python_without_the_engine_is_refused(path, said):
    with pytest.raises(ValueError, match=said + ".*setup-alfworld"):
        AlfWorld.worker_python(AlfWorld.Settings(python=path))


def test_an_old_python_is_refused(tmp_path):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\necho \'{"version": [3, 9], "missing": []}\'\n', encoding="utf-8")
    old.chmod(0o755)
    with pytest.raises(ValueError, match=r"is Python 3.9; it must be 3.11 or later"):
        AlfWorld.worker_python(AlfWorld.Settings(python=old))


def test_the_opened_game_is_the_listed_one(source):
    assert world.GAME_FILE == "game.tw-pddl"
    game = source._game(source.tasks("train")[3])
    assert game.id == source.tasks("train")[3].id
