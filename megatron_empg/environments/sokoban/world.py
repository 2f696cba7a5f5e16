"""A room that is played."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron_empg.environments.sokoban.prompt import SEPARATOR, commands_told
from megatron_empg.environments.sokoban.room import DIRECTIONS, Direction, RoomState, SokobanRoom
from megatron_empg.environments.sokoban.settings import RewardMode
from megatron_empg.environments.text_worlds.world import Scene

STEP_REWARD, ON_TARGET_REWARD, OFF_TARGET_REWARD, SOLVED_REWARD = -0.1, 1.0, -1.0, 10.0
"""Those of gym-sokoban (`SokobanEnv._calc_reward`)."""


@dataclass(frozen=True)
class PlayRules:
    """How a room is played: steps of a command at most, and what is earned. An unknown command costs `unknown`."""

    moves_per_turn: int = 1
    reward: RewardMode = "success"
    success_reward: float = 10.0
    unknown: float = 0.1

    def commands(self, text: str) -> list[Direction] | None:
        """The steps of a command; None for one that is unknown."""
        words = text.lower().split(SEPARATOR, maxsplit=self.moves_per_turn)
        if len(words) > self.moves_per_turn:
            return None
        steps = [direction for word in words for direction in DIRECTIONS if direction == word.strip()]
        if len(steps) != len(words):
            return None
        return steps

    def earned(self, room: SokobanRoom, before: RoomState, after: RoomState) -> float:
        """The reward of one step."""
        solved = room.solved(after)
        if self.reward == "success":
            if not solved:
                return 0.0
            return self.success_reward
        reward = STEP_REWARD
        more = room.on_target(after) - room.on_target(before)
        if more > 0:
            reward += ON_TARGET_REWARD
        elif more < 0:
            reward += OFF_TARGET_REWARD
        if solved:
            return reward + SOLVED_REWARD
        return reward

    @property
    def earned_by_nothing(self) -> float:
        """The reward of an unknown command: that of an idle step, less the penalty."""
        return (STEP_REWARD if self.reward == "gym" else 0.0) - self.unknown


class SokobanWorld:
    """An episode. One that can no longer be solved goes on, as in gym-sokoban: it is for the player to see."""

    def __init__(self, make_room: Callable[[], SokobanRoom], play: PlayRules) -> None:
        self._make_room = make_room
        self._play = play
        self._room: SokobanRoom
        self._state: RoomState

    def begin(self) -> Scene:
        """Make the room, and show it."""
        self._room = self._make_room()
        self._state = self._room.start
        return self._scene(0.0, moved=False)

    def act(self, command: str) -> Scene:
        """Take the steps of a command, up to the one that solves the room. A step into a wall changes nothing."""
        steps = self._play.commands(command)
        if steps is None:
            return self._unknown()
        before, reward = self._state, 0.0
        for direction in steps:
            after = self._room.step(self._state, direction)
            reward += self._play.earned(self._room, self._state, after)
            self._state = after
            if self._room.solved(after):
                break
        return self._scene(reward, moved=self._state != before)

    def close(self) -> None:
        """There is nothing to let go of."""

    def _scene(self, reward: float, *, moved: bool) -> Scene:
        shown = self._room.text(self._state)
        solved = self._room.solved(self._state)
        info: dict[str, float | str | bool] = {
            "moved": moved,
            "boxes_on_target": float(self._room.on_target(self._state)),
        }
        return Scene(shown, DIRECTIONS, solved, reward, success=solved or None, anchor=shown, info=info)

    def _unknown(self) -> Scene:
        shown = self._room.text(self._state)
        told = f"There is no such command. {commands_told(self._play.moves_per_turn)}\n{shown}"
        reward = self._play.earned_by_nothing
        return Scene(told, DIRECTIONS, reward=reward, anchor=shown, info={"moved": False, "unknown_command": True})
