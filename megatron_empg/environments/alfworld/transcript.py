"""What the expert did in a game and what it saw, so that a demonstration needs no engine."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_empg.environments.alfworld.manifest import Game, digest_of
from megatron_empg.environments.alfworld.text import anchor_of
from megatron_empg.environments.text_worlds.world import Scene

TRANSCRIPT_FILE = "transcript.json.gz"


@dataclass(frozen=True)
class RecordedScene:
    """What was seen, and what could be done."""

    observation: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class PlayedCommand:
    """A command, and what came of it."""

    command: str
    shown: RecordedScene


@dataclass(frozen=True)
class Transcript:
    """A game that was solved by its last command."""

    opening: RecordedScene
    turns: tuple[PlayedCommand, ...]


def transcript_bytes(transcript: Transcript) -> bytes:
    """The same bytes for the same transcript."""
    body = {
        "opening": _written(transcript.opening),
        "turns": [{"command": turn.command, **_written(turn.shown)} for turn in transcript.turns],
    }
    return gzip.compress(json.dumps(body, ensure_ascii=False).encode("utf-8"), mtime=0)


def read_transcript(folder: Path, game: Game) -> Transcript:
    """That of a game. Raises OSError, and ValueError for a file that is not what the manifest lists."""
    path = folder / TRANSCRIPT_FILE
    content = path.read_bytes()
    if digest_of(content) != game.transcript:
        raise ValueError(
            f"alfworld game {game.id!r}: {str(path)!r} is not the transcript that the manifest lists; "
            "make the games anew"
        )
    try:
        body = json.loads(gzip.decompress(content))
    except RecursionError:
        raise ValueError(f"alfworld game {game.id!r}: {str(path)!r} is nested too deeply") from None
    turns = tuple(PlayedCommand(turn["command"], _read(turn)) for turn in body["turns"])
    return Transcript(_read(body["opening"]), turns)


class TranscriptWorld:
    """A `World` that answers as the engine did, to the recorded commands."""

    def __init__(self, transcript: Transcript, success_reward: float) -> None:
        self._transcript = transcript
        self._success_reward = success_reward
        self._taken = 0

    def begin(self) -> Scene:
        """The first scene."""
        return _scene(self._transcript.opening, {})

    def act(self, command: str) -> Scene:
        """What the next recorded command met. Raises ValueError for any other command."""
        turn = self._transcript.turns[self._taken]
        if command != turn.command:
            raise ValueError(f"the transcript goes on with {turn.command!r}, not with {command!r}")
        self._taken += 1
        if self._taken < len(self._transcript.turns):
            return _scene(turn.shown, {"admissible": True})
        reward = self._success_reward
        return Scene(turn.shown.observation, done=True, reward=reward, success=True, info={"admissible": True})

    def close(self) -> None:
        """There is nothing to let go of."""


def _scene(shown: RecordedScene, info: dict[str, float | str | bool]) -> Scene:
    anchor = anchor_of(shown.observation, shown.choices)
    return Scene(shown.observation, shown.choices, anchor=anchor, info=info)


def _written(shown: RecordedScene) -> dict[str, Any]:
    return {"observation": shown.observation, "choices": list(shown.choices)}


def _read(body: dict[str, Any]) -> RecordedScene:
    return RecordedScene(body["observation"], tuple(body["choices"]))
