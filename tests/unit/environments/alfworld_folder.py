"""A folder of ALFWorld games that no engine plays: their files, transcripts and manifest are made by hand."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_empg.environments.alfworld.manifest import (
    FACTS_FILE,
    FOLDERS,
    GAME_FILE,
    GAMES,
    KINDS,
    Game,
    GamesManifest,
    digest_of,
    write_manifest,
)
from megatron_empg.environments.alfworld.transcript import (
    TRANSCRIPT_FILE,
    PlayedCommand,
    RecordedScene,
    Transcript,
    transcript_bytes,
)

GRAMMAR = '"task": [{"rhs": "Your task is to: put a mug in desk."}]'
ROOM = "You are in the middle of a room. Looking quickly around you, you see a desk 1, and a shelf 1."
TURNS = (
    ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a mug 1.", "take mug 1 from shelf 1"),
    ("take mug 1 from shelf 1", "You pick up the mug 1 from the shelf 1.", "go to desk 1"),
    ("go to desk 1", "You arrive at desk 1. On the desk 1, you see nothing.", "move mug 1 to desk 1"),
    ("move mug 1 to desk 1", "You move the mug 1 to the desk 1.", "look"),
)
TRANSCRIPT = Transcript(
    RecordedScene(ROOM, ("go to desk 1", "go to shelf 1", "inventory", "look")),
    tuple(PlayedCommand(command, RecordedScene(seen, (choice,))) for command, seen, choice in TURNS),
)


def write_game(folder: Path, name: str, kind: str, *, solvable: bool = True, grammar: str = GRAMMAR) -> Game:
    """One game below json_2.1.1, with its transcript."""
    place = folder / GAMES / name
    place.mkdir(parents=True)
    content = json.dumps({"name": name, "solvable": solvable, "grammar": grammar}).encode()
    (place / GAME_FILE).write_bytes(content)
    (place / FACTS_FILE).write_text(json.dumps({"task_type": kind}), encoding="utf-8")
    written = transcript_bytes(TRANSCRIPT)
    (place / TRANSCRIPT_FILE).write_bytes(written)
    return Game(name, kind, "put a mug in desk.", digest_of(content), digest_of(written))


def write_folder(folder: Path, games_of_a_split: int = 6, *, generated: bool = True) -> GamesManifest:
    """Games of all kinds in each split, and the manifest."""
    games = {}
    for split, name in FOLDERS.items():
        made = []
        for index in range(games_of_a_split):
            kind = KINDS[index % len(KINDS)]
            made.append(write_game(folder, f"{name}/{kind}-Mug-None-Desk-301/trial_{index}", kind))
        games[split] = tuple(made)
    manifest = GamesManifest(generated, games, 0 if generated else None, {"alfworld": "0.4.2"})
    write_manifest(folder, manifest)
    return manifest
