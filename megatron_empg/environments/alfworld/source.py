"""ALFWorld as a plug-in: games of a folder, played by the engine in worker processes of its own Python."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from megatron_empg.environments.alfworld.manifest import (
    GAMES,
    HOW_TO_GENERATE,
    HOW_TO_INDEX,
    KINDS,
    Game,
    GamesManifest,
    read_manifest,
    scene_of,
)
from megatron_empg.environments.alfworld.prompt import prompt_of
from megatron_empg.environments.alfworld.python import engine_python
from megatron_empg.environments.alfworld.scenes import ROOMS
from megatron_empg.environments.alfworld.settings import DATA_VARIABLE, AlfWorldSettings
from megatron_empg.environments.alfworld.thoughts import thought_before
from megatron_empg.environments.alfworld.transcript import TranscriptWorld, read_transcript
from megatron_empg.environments.alfworld.world import AlfWorldGame
from megatron_empg.environments.base import SPLITS, EpisodeLimits, Split, Task
from megatron_empg.environments.settings import EnvironmentSettings
from megatron_empg.environments.text_worlds.prompt import TextWorldPrompt
from megatron_empg.environments.text_worlds.settings import NO_RULES
from megatron_empg.environments.text_worlds.source import Script, ScriptedTurn, TextWorldSource
from megatron_empg.environments.text_worlds.turns import write_turn
from megatron_empg.environments.text_worlds.world import World


class AlfWorld(TextWorldSource):
    """Six kinds of household tasks. `test_id` has new games in scenes of training, `test_ood` other scenes."""

    Settings: ClassVar[type[EnvironmentSettings]] = AlfWorldSettings
    isolation: ClassVar[Literal["coroutine", "process"]] = "process"
    worker_memory_gib: ClassVar[float] = 0.5

    def __init__(self, settings: AlfWorldSettings, limits: EpisodeLimits) -> None:
        super().__init__(settings, limits)
        if settings.data is None:
            raise ValueError(
                f"alfworld data: must be given, or ${DATA_VARIABLE} be set: {HOW_TO_INDEX}; {HOW_TO_GENERATE}"
            )
        self._folder = settings.data
        self._reward = settings.success_reward
        self._prompt = prompt_of(settings.rules)
        self._manifest = read_manifest(settings.data)
        self._tasks = {split: [_task(game) for game in self._manifest.games[split]] for split in SPLITS}
        self._games = {game.id: game for games in self._manifest.games.values() for game in games}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The task types that its games are of."""
        found = {game.kind for game in self._games.values()}
        return tuple(kind for kind in KINDS if kind in found)

    @property
    def generated(self) -> bool:
        """Whether the games were made on some machine, so that no score is one of ALFWorld's."""
        return self._manifest.generated

    @property
    def data_name(self) -> str:
        """What results on these games are called."""
        return self._manifest.name

    def tasks(self, split: Split) -> Sequence[Task]:
        """All games of a split, in the manifest's order."""
        return self._tasks[split]

    def world(self, task: Task) -> World:
        """A game that has not begun."""
        game = self._game(task)
        return AlfWorldGame(self._folder_of(game), game, self._reward)

    def prompt(self, task: Task) -> TextWorldPrompt:
        """The same for every game."""
        return self._prompt

    @property
    def has_scripts(self) -> bool:
        """Whether the games were made together with what the expert did in them."""
        return any(game.transcript is not None for game in self._games.values())

    def scripted(self, task: Task, seed: int) -> Script | None:
        """The expert's game, with a thought before each command; None for a game without a transcript."""
        game = self._game(task)
        if game.transcript is None:
            return None
        transcript = read_transcript(self._folder_of(game), game)
        rng = random.Random(f"{task.id} {seed}")
        turns = [ScriptedTurn(thought_before(turn.command, rng), turn.command) for turn in transcript.turns]
        return Script(TranscriptWorld(transcript, self._reward), turns)

    def rehearse(self, task: Task) -> list[str]:
        """The expert's turns, or a look around where they are not known."""
        known = super().rehearse(task)
        return known or [write_turn("i look around .", "look"), write_turn("i see what i have .", "inventory")]

    def metrics(self) -> dict[str, float]:
        """Whether the games were generated, so that a run's curves say so."""
        return {"environment/generated_games": float(self.generated)}

    def warm_up(self) -> None:
        """Import the engine, which takes seconds. Raises ImportError where this Python has none."""
        from megatron_empg.environments.alfworld.engine import import_engine

        import_engine()

    @classmethod
    def caveats(cls, settings: EnvironmentSettings) -> tuple[str, ...]:
        """Whether games were generated, are of some kinds or rooms alone, and whether no rules are told."""
        assert isinstance(settings, AlfWorldSettings)
        if settings.data is not None:
            found = list(_caveats_of_games(read_manifest(settings.data)))
        else:
            found = []
        if settings.rules == "none":
            return (*found, NO_RULES)
        return tuple(found)

    @classmethod
    def worker_python(cls, settings: EnvironmentSettings) -> Path | None:
        """The Python that has the engine. Raises ValueError, with what to do, where there is none."""
        assert isinstance(settings, AlfWorldSettings)
        return engine_python(settings.python)

    def _game(self, task: Task) -> Game:
        try:
            return self._games[task.payload["game"]]
        except KeyError:
            raise ValueError(f"alfworld has no game {task.payload.get('game')!r} in its manifest") from None

    def _folder_of(self, game: Game) -> Path:
        return self._folder / GAMES / game.id


def _caveats_of_games(manifest: GamesManifest) -> Iterator[str]:
    games = [game for of_split in manifest.games.values() for game in of_split]
    if manifest.generated:
        yield "locally generated games: none of the published games is played"
    kinds = [kind for kind in KINDS if any(game.kind == kind for game in games)]
    if len(kinds) < len(KINDS):
        yield f"fewer kinds of tasks: {', '.join(kinds)}"
    scenes = {scene_of(game.id) for game in games}
    rooms = [room for room, numbers in ROOMS.items() if not scenes.isdisjoint(numbers)]
    if len(rooms) < len(ROOMS):
        yield f"fewer kinds of rooms: {', '.join(rooms)}"


def _task(game: Game) -> Task:
    return Task(game.id, [], {"goal": game.goal, "game": game.id}, kind=game.kind)
