"""manifest.json: which games a folder of data holds.

They lie as `alfworld-download` lays them: json_2.1.1/SPLIT/NAME/TRIAL/game.tw-pddl.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_empg.environments.base import SPLITS, Split
from megatron_empg.environments.settings import MANIFEST

GAMES = "json_2.1.1"
GAME_FILE = "game.tw-pddl"
FACTS_FILE = "traj_data.json"
FOLDERS: Mapping[Split, str] = {"train": "train", "test_id": "valid_seen", "test_ood": "valid_unseen"}
"""What ALFWorld calls the splits."""
KINDS = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
GENERATED = "ALFWorld engine, locally generated games"
DOWNLOADED = "ALFWorld games"
FORMAT = 1
TRIAL_OF_GENERATED = "trial_generated_"
"""How the last folder of a generated game's path begins; ALFRED's go on with T and a time."""
HOW_TO_INDEX = "`python -m megatron_empg.environments.alfworld.index DIR` writes it for games of alfworld-download"
HOW_TO_GENERATE = (
    "`PYTHONPATH=. .venv-alfworld/bin/python -m megatron_empg.environments.alfworld.generate DIR` makes games, "
    "in the Python that has the engine (docs/alfworld.md)"
)


@dataclass(frozen=True)
class Game:
    """`id` is its folder below json_2.1.1; `sha256` names the game's file, and `transcript` that of the expert's
    turns, where there is one."""

    id: str
    kind: str
    goal: str
    sha256: str
    transcript: str | None = None


@dataclass(frozen=True)
class GamesManifest:
    """The games of each split, and where they come from."""

    generated: bool
    games: Mapping[Split, tuple[Game, ...]]
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What results on these games are called."""
        if self.generated:
            return GENERATED
        return DOWNLOADED

    def counts(self) -> dict[str, dict[str, int]]:
        """{split: {task type: games}}."""
        return {split: _counts(games) for split, games in self.games.items()}


def _counts(games: Iterable[Game]) -> dict[str, int]:
    found = Counter(game.kind for game in games)
    return {kind: found[kind] for kind in KINDS if found[kind]}


def scene_of(game: str) -> int | None:
    """The number of a game's scene, with which the name before its trial ends; None for an id without.

    >>> scene_of("train/pick_and_place_simple-Mug-None-Desk-308/trial_T20190908")
    308
    """
    number = Path(game).parent.name.rpartition("-")[2]
    if not number.isdecimal():
        return None
    return int(number)


def digest_of(content: bytes) -> str:
    """The name of a file's content."""
    return hashlib.sha256(content).hexdigest()


def write_manifest(folder: Path, manifest: GamesManifest) -> None:
    """Write it aside, then under its name."""
    games_of_splits = {}
    for split, games in manifest.games.items():
        games_of_splits[split] = list(map(asdict, games))
    body: dict[str, Any] = {
        "format": FORMAT,
        "name": manifest.name,
        "generated": manifest.generated,
        "seed": manifest.seed,
        "versions": dict(manifest.versions),
        "counts": manifest.counts(),
        "games": games_of_splits,
    }
    text = json.dumps(body | {"digest": _digest(body)}, indent=1, ensure_ascii=False)
    aside = folder / f".{MANIFEST}.new"
    aside.write_text(text + "\n", encoding="utf-8")
    aside.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> GamesManifest:
    """What `write_manifest` wrote. Raises OSError or ValueError, saying what to do."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"alfworld data {str(folder)!r} has no {MANIFEST}: {HOW_TO_INDEX}; {HOW_TO_GENERATE}"
        )
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return _manifest(body, body.pop("digest"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, KeyError):
            said = f"{error.args[0]} is missing"
        else:
            said = str(error)
        raise ValueError(f"alfworld data: {str(path)!r} does not hold: {said}. {HOW_TO_INDEX}") from None


def manifest_if_readable(folder: Path) -> GamesManifest | None:
    """None where there is none that can be read: cut, changed, or of another format. It is then written anew."""
    try:
        return read_manifest(folder)
    except (OSError, ValueError):
        return None


def has_generated_games(folder: Path) -> bool:
    """Whether a game's path says so, whatever the manifest is worth."""
    return any(folder.glob(f"{GAMES}/*/*/{TRIAL_OF_GENERATED}*"))


def has_other_games(folder: Path) -> bool:
    """Whether there is a game whose path does not say that it was generated."""
    places = folder.glob(f"{GAMES}/*/*/*")
    return any(place.is_dir() and not place.name.startswith(TRIAL_OF_GENERATED) for place in places)


def _manifest(body: dict[str, Any], digest: str) -> GamesManifest:
    if body["format"] != FORMAT:
        raise ValueError(f"its format is {body['format']}; this version reads {FORMAT}")
    if _digest(body) != digest:
        raise ValueError("its content is not what its digest says: it was changed or cut")
    games: dict[Split, tuple[Game, ...]] = {}
    for split in SPLITS:
        games[split] = tuple(_game(entry) for entry in body["games"][split])
    return GamesManifest(body["generated"], games, body["seed"], body["versions"])


def _game(entry: dict[str, Any]) -> Game:
    game = Game(**entry)
    parts = Path(game.id).parts
    if Path(game.id).is_absolute() or ".." in parts:
        raise ValueError(f"the game {game.id!r} lies outside of the folder")
    if game.kind not in KINDS:
        raise ValueError(f"the game {game.id!r} is of the kind {game.kind!r}; known: {', '.join(KINDS)}")
    return game


def _digest(body: Mapping[str, Any]) -> str:
    return digest_of(json.dumps(body, sort_keys=True, ensure_ascii=False).encode("utf-8"))
