"""The manifest of a folder of games: what is written is read, and what does not hold is refused."""

import gzip
import json
from dataclasses import replace

import pytest

from megatron_empg.environments.alfworld import index
from megatron_empg.environments.alfworld.manifest import (
    FACTS_FILE,
    GAME_FILE,
    GAMES,
    KINDS,
    Game,
    digest_of,
    read_manifest,
    write_manifest,
)
from megatron_empg.environments.alfworld.transcript import TRANSCRIPT_FILE, read_transcript
from megatron_empg.environments.settings import MANIFEST
from tests.unit.environments.alfworld_folder import write_folder, write_game


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    written = write_folder(tmp_path)
    assert read_manifest(tmp_path) == written
    body = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    assert body["generated"] is True
    assert body["name"] == "ALFWorld engine, locally generated games"
    assert body["counts"]["train"]["look_at_obj_in_light"] == 1


def test_without_a_manifest_one_is_told_how_to_get_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"has no manifest.json: .*alfworld.index DIR.*alfworld.generate DIR"
    ):
        read_manifest(tmp_path)


def changed(folder, **fields):
    path = folder / MANIFEST
    body = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(body), encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"generated": False}, "not what its digest says"),
        ({"format": 99}, "its format is 99; this version reads 1"),
        ({"games": {}}, "not what its digest says"),
    ],
)
def test_a_changed_manifest_is_refused(tmp_path, fields, said):
    write_folder(tmp_path)
    changed(tmp_path, **fields)
    with pytest.raises(ValueError, match=said):
        read_manifest(tmp_path)


NESTED = "[" * 100_000
"""JSON in which lists stand in lists without end."""
NO_MANIFESTS = ["", "[]", "{}", '{"digest": 1}', "null", '{"format": 1, "digest": "x"}', NESTED]


@pytest.mark.parametrize("content", NO_MANIFESTS, ids=lambda content: content[:20])
def test_what_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"does not hold: .*alfworld.index DIR"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../../secret", "/etc"])
def test_a_game_outside_of_the_folder_is_refused(tmp_path, name):
    manifest = write_folder(tmp_path)
    games = dict(manifest.games)
    games["train"] = (replace(games["train"][0], id=name),)
    write_manifest(tmp_path, replace(manifest, games=games))
    with pytest.raises(ValueError, match="lies outside of the folder"):
        read_manifest(tmp_path)


def test_a_game_of_an_unknown_kind_is_refused(tmp_path):
    manifest = write_folder(tmp_path)
    games = dict(manifest.games)
    games["train"] = (replace(games["train"][0], kind="wash_the_dog"),)
    write_manifest(tmp_path, replace(manifest, games=games))
    with pytest.raises(ValueError, match="of the kind 'wash_the_dog'; known: pick_and_place_simple"):
        read_manifest(tmp_path)


def test_an_index_lists_the_games_that_can_be_solved(tmp_path, capsys):
    """As alfworld-download lays them, and as ALFWorld itself chooses among them."""
    write_game(tmp_path, "train/pick_and_place_simple-Mug-None-Desk-301/trial_1", "pick_and_place_simple")
    write_game(
        tmp_path, "train/pick_and_place_simple-Pen-None-Desk-301/trial_1", "pick_and_place_simple", solvable=False
    )
    write_game(tmp_path, "train/pick_and_place_simple-AppleSliced-None-Desk-1/trial_1", "pick_and_place_simple")
    write_game(tmp_path, "train/pick_and_place_with_movable_recep-X/trial_1", "pick_and_place_with_movable_recep")
    write_game(tmp_path, "train/pick_two_obj_and_place-X/trial_1", "stack_everything")
    write_game(tmp_path, "train/look_at_obj_in_light-X/trial_1", "look_at_obj_in_light", grammar="UNKNOWN GOAL")
    write_game(tmp_path, "train/look_at_obj_in_light-Y/trial_1", "look_at_obj_in_light")
    (tmp_path / GAMES / "train/look_at_obj_in_light-Y/trial_1" / GAME_FILE).write_text("{cut", encoding="utf-8")
    write_game(tmp_path, "train/look_at_obj_in_light-Z/trial_1", "look_at_obj_in_light")
    (tmp_path / GAMES / "train/look_at_obj_in_light-Z/trial_1" / GAME_FILE).unlink()
    write_game(tmp_path, "train/look_at_obj_in_light-W/trial_1", "look_at_obj_in_light")
    (tmp_path / GAMES / "train/look_at_obj_in_light-W/trial_1" / FACTS_FILE).write_text("[]", encoding="utf-8")
    write_game(tmp_path, "train/look_at_obj_in_light-V/trial_1", "look_at_obj_in_light")
    (tmp_path / GAMES / "train/look_at_obj_in_light-V/trial_1" / FACTS_FILE).write_text(NESTED, encoding="utf-8")
    write_game(tmp_path, "valid_seen/look_at_obj_in_light-X/trial_1", "look_at_obj_in_light")
    assert index.main([str(tmp_path)]) == 0
    manifest = read_manifest(tmp_path)
    assert (manifest.generated, manifest.name) == (False, "ALFWorld games")
    assert manifest.counts() == {
        "train": {"pick_and_place_simple": 1},
        "test_id": {"look_at_obj_in_light": 1},
        "test_ood": {},
    }
    assert manifest.games["train"][0].goal == "put a mug in desk."
    assert manifest.games["train"][0].transcript is None
    told = capsys.readouterr().out
    assert "left out: 1 with not known to be solvable" in told
    assert "left out: 2 with a task with sliced things or in things that move" in told
    assert "left out: 1 with a game.tw-pddl that is not JSON" in told
    assert "left out: 1 with a traj_data.json that is not a JSON object" in told
    assert "left out: 1 with a traj_data.json that is not JSON\n" in told


@pytest.mark.parametrize(
    ("made", "said"), [("nothing", "has no folder json_2.1.1"), ("a folder", "no game for training")]
)
def test_an_index_of_nothing_is_refused(tmp_path, capsys, made, said):
    if made == "a folder":
        (tmp_path / GAMES).mkdir()
    assert index.main([str(tmp_path)]) == 1
    assert said in capsys.readouterr().err


def test_generated_games_are_not_indexed_as_others(tmp_path, capsys):
    """Their results would then be called ALFWorld's."""
    write_folder(tmp_path)
    assert index.main([str(tmp_path)]) == 1
    assert "holds generated games" in capsys.readouterr().err
    assert read_manifest(tmp_path).generated


@pytest.mark.parametrize("content", ["", "{cut", '{"format": 99, "digest": "x"}', NESTED], ids=str.__len__)
def test_an_index_replaces_a_manifest_that_cannot_be_read(tmp_path, content):
    written = write_folder(tmp_path, generated=False)
    (tmp_path / MANIFEST).write_text(content, encoding="utf-8")
    assert index.main([str(tmp_path)]) == 0
    assert read_manifest(tmp_path).counts() == written.counts()


@pytest.mark.parametrize("content", [None, "{cut"])
def test_generated_games_are_known_without_their_manifest(tmp_path, capsys, content):
    """Their paths say it: a lost manifest does not make them ALFWorld's."""
    write_game(tmp_path, "train/look_at_obj_in_light-X/trial_generated_0_00000", "look_at_obj_in_light")
    if content is not None:
        (tmp_path / MANIFEST).write_text(content, encoding="utf-8")
    assert index.main([str(tmp_path)]) == 1
    assert "holds generated games" in capsys.readouterr().err


def test_a_transcript_that_is_nested_without_end_is_refused(tmp_path):
    written = gzip.compress(NESTED.encode())
    (tmp_path / TRANSCRIPT_FILE).write_bytes(written)
    game = Game("train/mug-X/trial_1", KINDS[0], "put a mug in desk.", "0", digest_of(written))
    with pytest.raises(ValueError, match=r"'train/mug-X/trial_1': .* is nested too deeply"):
        read_transcript(tmp_path, game)
