"""What is made where, before any engine is asked."""

import random
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from megatron_empg.common.locks import hold
from megatron_empg.environments.alfworld import generate
from megatron_empg.environments.alfworld.generate import GameJob, GameOrder, drop_damaged, main, make_games
from megatron_empg.environments.alfworld.manifest import FACTS_FILE, GAME_FILE, GAMES, KINDS, GamesManifest
from megatron_empg.environments.alfworld.problem import spelled
from megatron_empg.environments.alfworld.scenes import HELD_OUT, ROOMS, SEEN, UNSEEN, scenes_of
from megatron_empg.environments.alfworld.thoughts import thought_before
from megatron_empg.environments.alfworld.transcript import (
    TRANSCRIPT_FILE,
    RecordedScene,
    Transcript,
    transcript_bytes,
)
from tests.unit.environments.alfworld_folder import write_game


def test_training_and_valid_seen_share_scenes_that_valid_unseen_has_none_of():
    assert scenes_of("train") == scenes_of("test_id") == SEEN
    assert not set(scenes_of("test_ood")) & set(SEEN)
    assert not set(HELD_OUT) & {*SEEN, *UNSEEN}
    assert len(SEEN) + len(HELD_OUT) + len(UNSEEN) == 120


def test_every_split_has_as_many_games_of_each_kind():
    jobs = GameOrder(Path("games"), 0, {"train": 12, "test_id": 6, "test_ood": 7}).jobs()
    of_train = Counter(job.kind for job in jobs if job.split == "train")
    assert of_train == dict.fromkeys(KINDS, 2)
    assert Counter(job.split for job in jobs) == {"train": 12, "test_id": 6, "test_ood": 7}
    assert len({(job.split, job.trial) for job in jobs}) == len(jobs)


def test_task_types_and_rooms_can_be_chosen():
    jobs = GameOrder(Path("games"), 0, {"train": 4}, KINDS[1:3], ("bathroom",)).jobs()
    assert [job.kind for job in jobs] == [KINDS[1], KINDS[2]] * 2
    assert {job.rooms for job in jobs} == {("bathroom",)}
    by_room = [scenes_of("train", [room]) for room in ROOMS]
    assert sorted(number for scenes in by_room for number in scenes) == sorted(SEEN)
    assert all(401 <= number <= 430 for number in scenes_of("train", ["bathroom"]))
    assert scenes_of("test_ood", ["bathroom"]) == (424,)


def test_more_games_begin_with_the_same_ones():
    few = GameOrder(Path("games"), 0, {"train": 6}).jobs()
    assert GameOrder(Path("games"), 0, {"train": 12}).jobs()[:6] == few


def test_a_game_that_was_made_is_found_again(tmp_path):
    job = GameJob(tmp_path, 3, "test_ood", KINDS[0], 12)
    assert job.made() is None
    place = tmp_path / GAMES / "valid_unseen" / f"{KINDS[0]}-Mug-None-Desk-308" / job.trial
    place.mkdir(parents=True)
    assert job.made() == place
    assert GameJob(tmp_path, 4, "test_ood", KINDS[0], 12).made() is None
    assert GameJob(tmp_path, 3, "test_id", KINDS[0], 12).made() is None


def test_games_that_were_made_for_other_rooms_are_not_taken(tmp_path):
    """A game follows from the rooms that may be drawn too, so the same options make the same games anywhere."""
    some = ("bathroom", "kitchen")
    rooms = (tuple(ROOMS), ("bathroom",), ("kitchen",), some)
    jobs = [GameJob(tmp_path, 0, "train", KINDS[0], 5, chosen) for chosen in rooms]
    assert len({job.trial for job in jobs}) == len(jobs)
    assert GameJob(tmp_path, 0, "train", KINDS[0], 5, some[::-1]).trial == jobs[-1].trial
    for number, job in enumerate(jobs):
        assert job.made() is None
        place = tmp_path / GAMES / "train" / f"{KINDS[0]}-Cloth-None-Cabinet-401" / job.trial
        place.mkdir(parents=True)
        assert [other.made() is not None for other in jobs] == [other <= number for other in range(len(jobs))]


def test_names_are_spelled_as_alfred_spells_them():
    assert spelled("Mug|+01.20|-00.95") == "Mug_bar__plus_01_dot_20_bar__minus_00_dot_95"
    assert spelled("?o # object") == "?o - object"


def test_every_command_has_a_thought_that_its_seed_decides():
    for command in ("go to desk 1", "take mug 1 from desk 1", "inventory", "look", "slice apple 1 with knife 1"):
        thoughts = {thought_before(command, random.Random(seed)) for seed in range(20)}
        assert len(thoughts) > 1
        assert thought_before(command, random.Random(1)) == thought_before(command, random.Random(1))


def two_made(folder):
    """Two jobs and the manifest that lists what they made."""
    jobs = GameOrder(folder, 0, {"train": 2}).jobs()
    games = [write_game(folder, f"train/{job.kind}-Mug-None-Desk-301/{job.trial}", job.kind) for job in jobs]
    return jobs, GamesManifest(True, {"train": tuple(games)})


@pytest.mark.skipif(find_spec("alfworld") is not None, reason="this Python has the engine")
def test_a_python_without_the_engine_is_told_which_has_it_before_a_folder_is_made(tmp_path, capsys):
    folder = tmp_path / "games"
    assert main([str(folder)]) == 1
    assert not folder.exists()
    said = capsys.readouterr().err
    assert "lacks alfworld" in said
    assert ".venv-alfworld/bin/python -m megatron_empg.environments.alfworld.generate DIR" in said


def test_processes_that_are_replaced_make_the_rest_too(tmp_path, monkeypatch):
    jobs = GameOrder(tmp_path, 0, {"train": 5}).jobs()
    places = []
    for job in jobs:
        place = tmp_path / GAMES / "train" / f"{job.kind}-Mug-None-Desk-301" / job.trial
        place.mkdir(parents=True)
        places.append(place)
    monkeypatch.setattr(generate, "_GAMES_OF_A_PROCESS", 2)
    assert list(make_games(jobs, processes=1)) == places


OTHER = transcript_bytes(Transcript(RecordedScene("a room", ()), ()))


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    ("file", "content"),
    [
        (TRANSCRIPT_FILE, None),
        (TRANSCRIPT_FILE, b"cut"),
        (TRANSCRIPT_FILE, OTHER[:-9]),
        (GAME_FILE, b"{cut"),
        (GAME_FILE, b"{}"),
        (FACTS_FILE, None),
        (FACTS_FILE, b"[" * 100_000),
    ],
    ids=range(7),
)
def test_a_made_game_whose_files_are_damaged_is_taken_away(tmp_path, file, content, listed):
    jobs, manifest = two_made(tmp_path)
    victim = jobs[0].made() / file
    if content is None:
        victim.unlink()
    else:
        victim.write_bytes(content)
    drop_damaged(tmp_path, jobs, manifest if listed else None)
    assert [job.made() is not None for job in jobs] == [False, True]


def test_a_made_game_that_is_another_than_the_listed_one_is_taken_away(tmp_path):
    jobs, manifest = two_made(tmp_path)
    (jobs[1].made() / TRANSCRIPT_FILE).write_bytes(OTHER)
    drop_damaged(tmp_path, jobs, None)
    assert all(job.made() for job in jobs)
    drop_damaged(tmp_path, jobs, manifest)
    assert [job.made() is not None for job in jobs] == [True, False]


def test_a_folder_in_which_games_are_being_made_is_refused(tmp_path):
    unfinished = tmp_path / ".unfinished" / "a game"
    unfinished.mkdir(parents=True)
    with (tmp_path / ".generate.lock").open("a", encoding="utf-8") as lock:
        hold(lock, RuntimeError("nobody else has it"))
        with pytest.raises(ValueError, match=r"games are being made in .* already; wait for it"):
            generate.generate(GameOrder(tmp_path, 0, {"train": 1}), 1)
        assert unfinished.is_dir()
        assert sorted(path.name for path in tmp_path.iterdir()) == [".generate.lock", ".unfinished"]
