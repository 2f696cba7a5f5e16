"""One game as a world of text commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_empg.environments.alfworld.manifest import GAME_FILE, Game, digest_of
from megatron_empg.environments.alfworld.text import NOTHING_HAPPENS, anchor_of, choices_of, clean_observation
from megatron_empg.environments.text_worlds.world import Scene


class AlfWorldGame:
    """A `World`. `folder` is the game's own; `success_reward` is earned by the command that solves it."""

    def __init__(self, folder: Path, game: Game, success_reward: float) -> None:
        self._folder = folder
        self._game = game
        self._success_reward = success_reward
        self._engine: Any = None
        self._state: Any = None

    def begin(self) -> Scene:
        """Load and reset the game. Raises OSError or ValueError for a file that is not what the manifest lists."""
        path = self._folder / GAME_FILE
        _check(path, self._game)
        from megatron_empg.environments.alfworld.engine import open_game

        self._engine = open_game(path)
        self._state = self._engine.reset()
        return self._scene(self._state.feedback)

    def act(self, command: str) -> Scene:
        """Carry out a command. One that the engine does not list now is answered as the engine answers it, and
        never reaches it: nothing changes, and all that a policy writes is text."""
        command = command.lower()
        if command not in self._state.admissible_commands:
            return self._scene(NOTHING_HAPPENS, admissible=False)
        self._state, _, done = self._engine.step(command)
        if not done:
            return self._scene(self._state.feedback, admissible=True)
        won = bool(self._state.won)
        observation = clean_observation(self._state.feedback)
        reward = 0.0
        if won:
            reward = self._success_reward
        return Scene(observation, done=True, reward=reward, success=won, info={"admissible": True})

    def close(self) -> None:
        """Let go of the game."""
        engine, self._engine, self._state = self._engine, None, None
        if engine is not None:
            engine.close()

    def _scene(self, feedback: str, **info: bool) -> Scene:
        observation = clean_observation(feedback)
        choices = choices_of(self._state.admissible_commands)
        return Scene(observation, choices, anchor=anchor_of(observation, choices), info=dict(info))


def _check(path: Path, game: Game) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OSError(f"alfworld game {game.id!r} cannot be read: {error}; the manifest lists it") from None
    if digest_of(content) != game.sha256:
        raise ValueError(
            f"alfworld game {game.id!r}: {str(path)!r} ({len(content)} bytes) is not the file that the manifest "
            "lists; get it again, or index the folder again"
        )
