"""The scripted agent whose episodes warm a policy up."""

from __future__ import annotations

import random
from collections.abc import Iterator

from megatron_empg.environments.sokoban.prompt import SEPARATOR
from megatron_empg.environments.sokoban.reverse_play import Solutions
from megatron_empg.environments.sokoban.room import DIRECTIONS, Direction, RoomState
from megatron_empg.environments.text_worlds.source import ScriptedTurn


class Expert:
    """Takes the first step of a shortest solution, again and again, but for a mistake now and then.

    What it thinks is the push that it goes for, the next one of its solution. A mistake is a step to another state
    from which the steps that are left are enough; where there is none, it makes none.
    """

    def __init__(self, known: Solutions, mistakes: float, rng: random.Random) -> None:
        """`known`: the room's solutions within the steps of an episode. `mistakes`: their chance at each step."""
        self._known = known
        self._mistakes = mistakes
        self._rng = rng

    def turns(self, steps: int, moves_per_turn: int) -> list[ScriptedTurn]:
        """The expert's turns in an episode of at most so many steps."""
        taken = list(self._walk(steps))
        turns: list[ScriptedTurn] = []
        for first in range(0, len(taken), moves_per_turn):
            together = taken[first : first + moves_per_turn]
            command = f" {SEPARATOR} ".join(direction for _, direction in together)
            turns.append(ScriptedTurn(together[0][0], command))
        return turns

    def _walk(self, left: int) -> Iterator[tuple[str, Direction]]:
        """(thought, step) up to the solved room."""
        room, state = self._known.room, self._known.room.start
        while not room.solved(state):
            direction = self._next(state, left)
            yield f"push {self._next_push(state)}", direction
            state, left = room.step(state, direction), left - 1

    def _next(self, state: RoomState, left: int) -> Direction:
        best = self._known.next_step(state)
        if self._rng.random() >= self._mistakes:
            return best
        others = [direction for direction in DIRECTIONS if self._is_mistake(state, direction, best, left)]
        if others:
            return self._rng.choice(others)
        return best

    def _is_mistake(self, state: RoomState, direction: Direction, best: Direction, left: int) -> bool:
        after = self._known.room.step(state, direction)
        steps = self._known.steps(after)
        return direction != best and after != state and steps is not None and steps < left

    def _next_push(self, state: RoomState) -> Direction:
        room = self._known.room
        while True:
            direction = self._known.next_step(state)
            after = room.step(state, direction)
            if after.boxes != state.boxes:
                return direction
            state = after
