"""Make games from what ALFWorld's package ships: its PDDL, its grammar, its expert and the layouts of its scenes.

``python -m megatron_empg.environments.alfworld.generate DIR``, with the Python that has the engine. They are
played by ALFWorld's engine, but they are no games of ALFWorld's: results on them are none of its scores. A second
call goes on where the first was ended, and makes more where more are asked for; games of other rooms or another
seed lie beside those that are there, and the manifest lists the last call's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from megatron_empg.common.locks import hold_where_possible
from megatron_empg.common.processes import die_with_parent
from megatron_empg.environments.alfworld.engine import engine_versions
from megatron_empg.environments.alfworld.expert import expert_transcript
from megatron_empg.environments.alfworld.manifest import (
    FACTS_FILE,
    FOLDERS,
    GAME_FILE,
    GAMES,
    HOW_TO_GENERATE,
    KINDS,
    TRIAL_OF_GENERATED,
    Game,
    GamesManifest,
    digest_of,
    has_other_games,
    manifest_if_readable,
    write_manifest,
)
from megatron_empg.environments.alfworld.problem import GameGoal, furnish, game_files, invent
from megatron_empg.environments.alfworld.python import NEEDED
from megatron_empg.environments.alfworld.scenes import ROOMS, read_scene, scenes_of
from megatron_empg.environments.alfworld.text import goal_of_grammar
from megatron_empg.environments.alfworld.transcript import (
    TRANSCRIPT_FILE,
    Transcript,
    read_transcript,
    transcript_bytes,
)
from megatron_empg.environments.base import Split

PROGRAM = "python -m megatron_empg.environments.alfworld.generate"
ATTEMPTS = 60
"""Games that are invented for one that the expert solves."""
MOST_TURNS = 50
"""Turns within which the expert must solve a game: those of an episode in the field's comparisons."""
_UNFINISHED = ".unfinished"
_LOCK = ".generate.lock"
_GAMES_OF_A_PROCESS = 25
"""The engine leaks; processes are replaced after so many games each."""


@dataclass(frozen=True)
class GameJob:
    """One game to be made. All of it follows from these."""

    folder: Path
    seed: int
    split: Split
    kind: str
    index: int
    rooms: tuple[str, ...] = tuple(ROOMS)

    @property
    def trial(self) -> str:
        """The last folder of its path, which names what the game follows from beside its split and kind."""
        chosen = [room for room in ROOMS if room in self.rooms]
        rooms = ""
        if len(chosen) != len(ROOMS):
            rooms = "".join(f"_{room}" for room in chosen)
        return f"{TRIAL_OF_GENERATED}{self.seed}_{self.index:05d}{rooms}"

    def made(self) -> Path | None:
        """Its folder, where it was made already."""
        places = (self.folder / GAMES / FOLDERS[self.split]).glob(f"{self.kind}-*/{self.trial}")
        return min(places, default=None)


@dataclass(frozen=True)
class GameOrder:
    """What is to be made: how many games of each split, as many of each kind, and in which rooms."""

    folder: Path
    seed: int
    counts: Mapping[Split, int]
    kinds: tuple[str, ...] = KINDS
    rooms: tuple[str, ...] = tuple(ROOMS)

    def jobs(self) -> list[GameJob]:
        """Split by split."""
        return [
            GameJob(self.folder, self.seed, split, self.kinds[index % len(self.kinds)], index, self.rooms)
            for split, count in self.counts.items()
            for index in range(count)
        ]


def make_game(job: GameJob) -> Path:
    """The game's folder. Raises RuntimeError where the expert solves none that can be invented."""
    there = job.made()
    if there is not None:
        return there
    aside = job.folder / _UNFINISHED / f"{os.getpid()}_{job.split}_{job.trial}"
    for attempt in range(ATTEMPTS):
        name = _attempt(job, random.Random(f"{job.seed} {job.split} {job.kind} {job.index} {attempt}"), aside)
        if name is not None:
            place = job.folder / GAMES / FOLDERS[job.split] / name / job.trial
            place.parent.mkdir(parents=True, exist_ok=True)
            aside.rename(place)
            return place
    shutil.rmtree(aside, ignore_errors=True)
    raise RuntimeError(
        f"{job.kind} of {job.split}: the expert solved none of {ATTEMPTS} games in {', '.join(job.rooms)}; not "
        "every room has what a task needs"
    )


def _attempt(job: GameJob, rng: random.Random, aside: Path) -> str | None:
    """Write a game aside. Its name; None where there is none or the expert does not solve it."""
    scene = read_scene(rng.choice(scenes_of(job.split, job.rooms)))
    asked = invent(job.kind, scene, rng)
    room = None
    if asked is not None:
        room = furnish(asked, scene, rng)
    if asked is None or room is None:
        return None
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    game, facts = game_files(asked, room)
    (aside / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")
    (aside / GAME_FILE).write_text(json.dumps(game), encoding="utf-8")
    transcript = expert_transcript(aside / GAME_FILE, MOST_TURNS)
    if transcript is None:
        return None
    _finish(aside, game, transcript)
    return _name(asked, scene.number)


def _finish(aside: Path, game: dict[str, object], transcript: Transcript) -> None:
    walkthrough = [turn.command for turn in transcript.turns]
    (aside / GAME_FILE).write_text(json.dumps(game | {"walkthrough": walkthrough}), encoding="utf-8")
    (aside / TRANSCRIPT_FILE).write_bytes(transcript_bytes(transcript))


def _name(asked: GameGoal, scene: int) -> str:
    """As ALFRED names its tasks."""
    return f"{asked.kind}-{asked.thing}-None-{asked.place or asked.lamp}-{scene}"


def entry_of(folder: Path, place: Path) -> Game:
    """What the manifest says of a game that was made. Raises what reading its files raises."""
    content = (place / GAME_FILE).read_bytes()
    facts = json.loads((place / FACTS_FILE).read_text(encoding="utf-8"))
    goal = goal_of_grammar(json.loads(content)["grammar"])
    if goal is None:
        raise ValueError(f"{str(place / GAME_FILE)!r} has no goal in its grammar")
    transcript = digest_of((place / TRANSCRIPT_FILE).read_bytes())
    name = place.relative_to(folder / GAMES).as_posix()
    return Game(name, facts["task_type"], goal, digest_of(content), transcript)


def drop_damaged(folder: Path, jobs: Sequence[GameJob], before: GamesManifest | None) -> None:
    """Take away what was made and is not as the manifest has it, or cannot be read, so that it is made again."""
    listed: dict[str, Game] = {}
    for games in before.games.values() if before is not None else ():
        listed |= {game.id: game for game in games}
    for job in jobs:
        place = job.made()
        if place is not None and not _is_sound(folder, place, listed):
            print(f"{place.parent.name} is damaged and made again", flush=True)
            shutil.rmtree(place)


def _is_sound(folder: Path, place: Path, listed: Mapping[str, Game]) -> bool:
    try:
        found = entry_of(folder, place)
        read_transcript(place, found)
    except (OSError, ValueError, KeyError, TypeError, EOFError, RecursionError, zlib.error):
        return False
    return found == listed.get(found.id, found)


def make_games(jobs: Sequence[GameJob], processes: int) -> Iterator[Path]:
    """The games' folders, in order, made by so many processes.

    They are replaced all at once: Python 3.11's own `max_tasks_per_child` may replace none, and wait forever
    (python/cpython#115634).
    """
    at_once = processes * _GAMES_OF_A_PROCESS
    for first in range(0, len(jobs), at_once):
        yield from _made_together(jobs[first : first + at_once], processes)


def _made_together(jobs: Sequence[GameJob], processes: int) -> Iterator[Path]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        processes,
        mp_context=context,
        initializer=die_with_parent,
        initargs=(os.getpid(),),
    )
    try:
        yield from pool.map(make_game, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def generate(order: GameOrder, processes: int) -> GamesManifest:
    """Make the games and the manifest, which lists these alone. Raises ValueError for a folder of other games, or
    where another process makes games in it."""
    with _alone(order.folder):
        return _generate(order, processes)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two of them would take away what the other makes. Raises ValueError."""
    with (folder / _LOCK).open("a", encoding="utf-8") as lock:
        hold_where_possible(lock, ValueError(f"games are being made in {str(folder)!r} already; wait for it"))
        yield


def _generate(order: GameOrder, processes: int) -> GamesManifest:
    folder, jobs = order.folder, order.jobs()
    before = manifest_if_readable(folder)
    if has_other_games(folder) if before is None else not before.generated:
        raise ValueError(f"{str(folder)!r} holds games that were not generated; give a folder of its own")
    drop_damaged(folder, jobs, before)
    games: dict[Split, list[Game]] = {split: [] for split in FOLDERS}
    for number, (job, place) in enumerate(zip(jobs, make_games(jobs, processes), strict=True), 1):
        games[job.split].append(entry_of(folder, place))
        print(f"[{number}/{len(jobs)}] {job.split}: {place.parent.name}", flush=True)
    shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)
    of_splits = {split: tuple(found) for split, found in games.items()}
    manifest = GamesManifest(True, of_splits, order.seed, engine_versions())
    write_manifest(folder, manifest)
    return manifest


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Its status: 1 where nothing could be made."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--train", type=int, default=360, help="games of training (360)")
    parser.add_argument("--test-id", type=int, default=128, help="games of valid_seen (128)")
    parser.add_argument("--test-ood", type=int, default=128, help="games of valid_unseen (128)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="task types; all six")
    parser.add_argument("--rooms", nargs="+", choices=tuple(ROOMS), default=tuple(ROOMS), help="all four")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="as many as there are cores")
    given = parser.parse_args(arguments)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(
            f"the Python {sys.executable!r} lacks {', '.join(missing)}; games are made in the one that has "
            f"ALFWorld's engine: {HOW_TO_GENERATE}. `make setup-alfworld` makes .venv-alfworld",
            file=sys.stderr,
        )
        return 1
    counts: dict[Split, int] = {"train": given.train, "test_id": given.test_id, "test_ood": given.test_ood}
    given.folder.mkdir(parents=True, exist_ok=True)
    try:
        order = GameOrder(given.folder, given.seed, counts, tuple(given.kinds), tuple(given.rooms))
        manifest = generate(order, max(1, given.processes))
    except (ValueError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{manifest.name}: {json.dumps(manifest.counts())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
