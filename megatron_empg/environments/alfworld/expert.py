"""ALFWorld's hand-coded expert plays a game; what it did and saw is its transcript."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

from megatron_empg.environments.alfworld.engine import open_game
from megatron_empg.environments.alfworld.text import choices_of, clean_observation
from megatron_empg.environments.alfworld.transcript import PlayedCommand, RecordedScene, Transcript

_OF_A_CIRCLE = 3
"""An expert that has done the same so often, and seen the same, goes round in a circle."""


def expert_transcript(path: Path, most_turns: int) -> Transcript | None:
    """The expert's game; None where it does not solve it in that many turns.

    The expert draws from `random`, so its draws are seeded by the game's text.
    """
    random.seed(path.read_text(encoding="utf-8"))
    game = open_game(path, expert=True)
    try:
        return _play(game, most_turns)
    except Exception as error:
        if not _gave_up(error):
            raise
        return None
    finally:
        game.close()


def _play(game: Any, most_turns: int) -> Transcript | None:
    state = game.reset()
    opening = _shown(state)
    turns: list[PlayedCommand] = []
    met: Counter[PlayedCommand] = Counter()
    for _ in range(most_turns):
        command = state["extra.expert_plan"][0]
        state, _, done = game.step(command)
        turns.append(PlayedCommand(command, _shown(state)))
        if done:
            if not state.won:
                return None
            return Transcript(opening, tuple(turns))
        met[turns[-1]] += 1
        if met[turns[-1]] == _OF_A_CIRCLE:
            return None
    return None


def _gave_up(error: Exception) -> bool:
    """The expert raises what it likes where it knows no more."""
    if isinstance(error, IndexError | KeyError):
        return True
    return "HandCoded" in type(error).__name__ or str(error) == "Timeout"


def _shown(state: Any) -> RecordedScene:
    return RecordedScene(clean_observation(state.feedback), choices_of(state.admissible_commands))
