"""Write manifest.json for games of `alfworld-download`: those that can be solved, by split and task type.

``python -m megatron_empg.environments.alfworld.index DIR``; any Python with this package will do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_empg.environments.alfworld.manifest import (
    FACTS_FILE,
    FOLDERS,
    GAME_FILE,
    GAMES,
    KINDS,
    Game,
    GamesManifest,
    digest_of,
    has_generated_games,
    manifest_if_readable,
    write_manifest,
)
from megatron_empg.environments.alfworld.text import goal_of_grammar
from megatron_empg.environments.base import Split

PROGRAM = "python -m megatron_empg.environments.alfworld.index"
_NOT_SUPPORTED = ("movable", "Sliced")
"""Words in a game's path by which ALFWorld itself leaves it out."""


class GameNotListed(Exception):
    """Why a game is not listed."""


def index(folder: Path) -> tuple[GamesManifest, Counter[str]]:
    """The manifest, and how many games were left out for what reason. Raises ValueError or OSError."""
    before = manifest_if_readable(folder)
    if has_generated_games(folder) or (before is not None and before.generated):
        raise ValueError(f"{str(folder)!r} holds generated games, whose manifest `generate` writes")
    if not (folder / GAMES).is_dir():
        raise FileNotFoundError(f"{str(folder)!r} has no folder {GAMES}: name what `alfworld-download` filled")
    left_out: Counter[str] = Counter()
    games: dict[Split, tuple[Game, ...]] = {}
    for split, name in FOLDERS.items():
        games[split] = tuple(_games_of(folder / GAMES, name, left_out))
    if not games["train"]:
        raise ValueError(f"{str(folder)!r} has no game for training; left out: {dict(left_out)}")
    manifest = GamesManifest(False, games)
    write_manifest(folder, manifest)
    return manifest, left_out


def _games_of(games: Path, split: str, left_out: Counter[str]) -> list[Game]:
    found: list[Game] = []
    for facts in sorted((games / split).glob(f"*/*/{FACTS_FILE}")):
        try:
            found.append(_game(games, facts.parent))
        except GameNotListed as reason:
            left_out[str(reason)] += 1
    return found


def _game(games: Path, place: Path) -> Game:
    name = place.relative_to(games).as_posix()
    if any(word in name for word in _NOT_SUPPORTED):
        raise GameNotListed("a task with sliced things or in things that move")
    kind = _json_of(place / FACTS_FILE).get("task_type")
    if kind not in KINDS:
        raise GameNotListed(f"the task type {kind}")
    if not (place / GAME_FILE).is_file():
        raise GameNotListed(f"no {GAME_FILE}")
    game = _json_of(place / GAME_FILE)
    if not game.get("solvable"):
        raise GameNotListed("not known to be solvable")
    goal = goal_of_grammar(str(game.get("grammar", "")))
    if goal is None:
        raise GameNotListed("no goal in its grammar")
    return Game(name, str(kind), goal, digest_of((place / GAME_FILE).read_bytes()))


def _json_of(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise GameNotListed(f"a {path.name} that is not JSON") from None
    if not isinstance(found, dict):
        raise GameNotListed(f"a {path.name} that is not a JSON object")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Its status: 1 where there is nothing to list."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder: Path = parser.parse_args(arguments).folder
    try:
        manifest, left_out = index(folder)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for split, counts in manifest.counts().items():
        print(f"{split}: {sum(counts.values())} games {json.dumps(counts)}")
    for reason, count in sorted(left_out.items()):
        print(f"left out: {count} with {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
