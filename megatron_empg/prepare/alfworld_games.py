"""ALFWorld's games with their manifest.json: unpacked and indexed in one folder, or made by its engine in another.

Published and generated games never lie in the same folder, so that none can pass for one of the other kind.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import megatron_empg
from megatron_empg.environments.alfworld.index import index
from megatron_empg.environments.alfworld.manifest import (
    DOWNLOADED,
    FACTS_FILE,
    FOLDERS,
    GAME_FILE,
    GAMES,
    GENERATED,
    Game,
    read_manifest,
)
from megatron_empg.environments.alfworld.transcript import TRANSCRIPT_FILE
from megatron_empg.environments.settings import MANIFEST
from megatron_empg.prepare.checksums import digest_of
from megatron_empg.prepare.costs import Cost
from megatron_empg.prepare.errors import PrepareError
from megatron_empg.prepare.manifest import PreparedFile, PreparedFolder, PreparedGames
from megatron_empg.prepare.programs import run_program
from megatron_empg.prepare.unpack import unpack
from megatron_empg.prepare.work import InitialFolder, PreparationRun

PUBLISHED_PLACE, GENERATED_PLACE = "games", "generated_games"
FACTS, GAME = FACTS_FILE, GAME_FILE
_GENERATE = "megatron_empg.environments.alfworld.generate"
EVALUATED = 128
"""Questions that ALFWorld's recipes ask of each test split."""
_BYTES_OF_A_GAME = 200_000
_CORE_SECONDS_OF_A_GAME = 20.0
"""CPU time, with that of games which the expert does not solve."""


@dataclass(frozen=True)
class PublishedGames:
    """Unpacked from the archives and indexed. `about_bytes`, `hours`: what they take, for the estimate."""

    about_bytes: int
    hours: float
    name: ClassVar[str] = "games"

    def require(self) -> None:
        """Nothing: any Python can index them."""

    def cost(self, before: InitialFolder) -> Cost | None:
        if _published(before.prepared) is not None:
            return None
        return Cost(self.name, 0, self.about_bytes, self.hours)

    def make(self, work: PreparationRun) -> None:
        """Unpack what is not there or damaged, and index the games where something changed."""
        archives = _archives(work)
        of = [archive.sha256 for archive in archives.values()]
        place, noted = work.folder / PUBLISHED_PLACE, _published(work.prepared)
        if noted is not None and noted.of != of:
            work.say(f"unpacking the games again: {place} has those of other archives")
            shutil.rmtree(place, ignore_errors=True)
        written = 0
        for holds, archive in archives.items():
            work.say(f"unpacking {archive.path}, and checking what is there")
            written += unpack(
                work.folder / archive.path, place, partial(_is_of_a_game, holds=holds), quick=work.quick
            )
        if written or not _is_as_noted(noted, place):
            _index(place, work)
            work.keep(games=_noted(place, None, of))
        _say_counts(work)


@dataclass(frozen=True)
class GeneratedGames:
    """So many games of training; of each other split what evaluations ask for, or a sixth if that is more.

    `python`: one that has the engine.
    """

    training: int
    python: Path | None
    name: ClassVar[str] = "games"

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of games, by the generator's options."""
        others = max(min(self.training, EVALUATED), self.training // 6)
        return {"--train": self.training, "--test-id": others, "--test-ood": others}

    def require(self) -> None:
        _engine_python(self.python)

    def cost(self, before: InitialFolder) -> Cost | None:
        noted = _generated(before.prepared)
        if noted is not None and noted.generated == self.training:
            return None
        games = sum(self.counts.values())
        hours = games * _CORE_SECONDS_OF_A_GAME / _cores() / 3600
        return Cost(self.name, 0, games * _BYTES_OF_A_GAME, hours)

    def make(self, work: PreparationRun) -> None:
        """Make what is not there or damaged."""
        place, noted = work.folder / GENERATED_PLACE, _generated(work.prepared)
        damaged = _take_away_damaged(place, noted, work)
        if damaged or noted is None or noted.generated != self.training or not _is_as_noted(noted, place):
            words = [str(place), "--processes", str(_cores())]
            for option, count in self.counts.items():
                words += [option, str(count)]
            _run_module(_engine_python(self.python), _GENERATE, words)
            work.keep(games=_noted(place, self.training, []))
        _say_counts(work)


def _archives(work: PreparationRun) -> dict[str, PreparedFile]:
    """By what they hold. Raises PrepareError where they were not fetched."""
    files = work.prepared.files
    if FACTS not in files or GAME not in files:
        raise PrepareError("there are no archives of games to unpack; fetch them first (--only data)")
    return {holds: files[holds] for holds in (FACTS, GAME)}


def _is_of_a_game(name: str, holds: str) -> bool:
    """Whether an archive's file is one that is read, of a split that is used."""
    parts = name.split("/")
    return len(parts) > 2 and parts[0] == GAMES and parts[1] in FOLDERS.values() and parts[-1] == holds


def _published(prepared: PreparedFolder) -> PreparedGames | None:
    """What is noted of published games; None where generated ones are noted."""
    games = prepared.games
    if games is None or games.generated is not None:
        return None
    return games


def _generated(prepared: PreparedFolder) -> PreparedGames | None:
    games = prepared.games
    if games is None or games.generated is None:
        return None
    return games


def _is_as_noted(noted: PreparedGames | None, place: Path) -> bool:
    path = place / MANIFEST
    return noted is not None and path.is_file() and digest_of(path).sha256 == noted.manifest


def _noted(place: Path, generated: int | None, of: list[str]) -> PreparedGames:
    """What prepared.json says of the games that are there. Raises PrepareError."""
    try:
        manifest = read_manifest(place)
    except (OSError, ValueError) as error:
        raise PrepareError(str(error)) from None
    counts = {str(split): len(games) for split, games in manifest.games.items()}
    sha256 = digest_of(place / MANIFEST).sha256
    return PreparedGames(path=place.name, manifest=sha256, counts=counts, generated=generated, of=of)


def _say_counts(work: PreparationRun) -> None:
    games = work.prepared.games
    assert games is not None, "they were noted"
    if games.generated is None:
        called = DOWNLOADED
    else:
        called = GENERATED
    counts = ", ".join(f"{split} {count}" for split, count in games.counts.items())
    work.say(f"{called}: {counts}")


def _take_away_damaged(place: Path, noted: PreparedGames | None, work: PreparationRun) -> int:
    """Remove generated games that are not what the manifest says, so that they are made again; how many."""
    if noted is None or not _is_as_noted(noted, place):
        return 0
    damaged = 0
    for games in read_manifest(place).games.values():
        for game in games:
            if not _is_sound(place / GAMES / game.id, game, work.quick):
                work.say(f"{game.id} is damaged and made again")
                shutil.rmtree(place / GAMES / game.id, ignore_errors=True)
                damaged += 1
    return damaged


def _is_sound(folder: Path, game: Game, quick: bool) -> bool:
    """Of the facts there is no digest: an engine that cannot read them says so."""
    digests = {GAME_FILE: game.sha256}
    if game.transcript is not None:
        digests[TRANSCRIPT_FILE] = game.transcript
    if not all((folder / name).is_file() for name in (*digests, FACTS_FILE)):
        return False
    return quick or all(digest_of(folder / name).sha256 == known for name, known in digests.items())


def _engine_python(named: Path | None) -> str:
    """The Python that has ALFWorld's engine. Raises PrepareError."""
    from megatron_empg.environments.alfworld.settings import AlfWorldSettings
    from megatron_empg.environments.alfworld.source import AlfWorld

    try:
        found = AlfWorld.worker_python(AlfWorldSettings(data=None, python=named))
    except ValueError as error:
        said = str(error).replace("with environment.settings.python", "by --python")
        raise PrepareError(f"games are made by ALFWorld's engine: {said}") from None
    if found is None:
        return sys.executable
    return str(found)


def _index(place: Path, work: PreparationRun) -> None:
    """Raises PrepareError where there is no game to train on."""
    try:
        _, left_out = index(place)
    except (OSError, ValueError) as error:
        raise PrepareError(f"the games cannot be indexed: {error}") from None
    for reason, count in sorted(left_out.items()):
        work.say(f"left out: {count} with {reason}")


def _run_module(python: str, module: str, words: Sequence[str]) -> None:
    """A module of this package in the engine's Python, which finds the package and nothing else of ours.

    The package is linked into a folder of its own: what lies beside it may be all that the trainer has installed.
    A worker's hook would not do here, for the processes that the module starts would not have it.
    Raises PrepareError.
    """
    package = Path(megatron_empg.__file__).resolve().parent
    with TemporaryDirectory() as alone:
        (Path(alone) / package.name).symlink_to(package)
        status = run_program([python, "-P", "-s", "-m", module, *words], {"PYTHONPATH": alone})
    if status:
        raise PrepareError(
            f"`{module}` ended with status {status} while games are made: see its lines above. What is there is "
            "kept; the same command goes on"
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0))
