"""Sokoban as a plug-in: rooms by split, each made when it is played."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from megatron_empg.environments.base import EpisodeLimits, Split, Task
from megatron_empg.environments.mapped import Mapped
from megatron_empg.environments.settings import EnvironmentSettings
from megatron_empg.environments.sokoban.expert import Expert
from megatron_empg.environments.sokoban.prompt import goal_of, prompt_of
from megatron_empg.environments.sokoban.reverse_play import solutions
from megatron_empg.environments.sokoban.rooms import SokobanRooms
from megatron_empg.environments.sokoban.settings import SokobanSettings
from megatron_empg.environments.sokoban.world import PlayRules, SokobanWorld
from megatron_empg.environments.text_worlds.prompt import TextWorldPrompt
from megatron_empg.environments.text_worlds.settings import NO_RULES
from megatron_empg.environments.text_worlds.source import Script, TextWorldSource


class Sokoban(TextWorldSource):
    """Generated rooms, each of which can be solved within an episode; walkthroughs of a scripted agent."""

    Settings = SokobanSettings

    def __init__(self, settings: SokobanSettings, limits: EpisodeLimits) -> None:
        super().__init__(settings, limits)
        self._settings = settings
        self._steps = limits.max_turns * settings.moves_per_turn
        self._rooms = SokobanRooms(settings, self._steps)
        self._play = PlayRules(
            settings.moves_per_turn, settings.reward, settings.success_reward, settings.invalid_action_penalty
        )

    @classmethod
    def caveats(cls, settings: EnvironmentSettings) -> tuple[str, ...]:
        """Nobody publishes rooms, only how they are generated; and that no rules are told, where that is so."""
        assert isinstance(settings, SokobanSettings)
        rooms = "rooms of a generator of our own: shorter or longer solutions than others' rooms"
        if settings.rules == "none":
            return (rooms, NO_RULES)
        return (rooms,)

    def tasks(self, split: Split) -> Sequence[Task]:
        """A task for each room, in order. Raises ValueError for an unknown split."""
        return Mapped(range(self._rooms.count(split)), partial(self._task, split))

    def world(self, task: Task) -> SokobanWorld:
        """The room of a task, which is made when the episode begins."""
        return SokobanWorld(partial(self._rooms.room, task.payload["split"], task.payload["number"]), self._play)

    def prompt(self, task: Task) -> TextWorldPrompt:
        """The rules, in the length that the settings want."""
        return prompt_of(self._settings.rules, self._settings.moves_per_turn)

    def scripted(self, task: Task, seed: int) -> Script:
        """The scripted agent, with its mistakes."""
        room = self._rooms.room(task.payload["split"], task.payload["number"])
        known = solutions(room, self._steps)
        rng = random.Random(f"{seed} {task.id}")
        expert = Expert(known, self._settings.expert_mistakes, rng)
        return Script(self.world(task), expert.turns(self._steps, self._settings.moves_per_turn))

    def _task(self, split: Split, number: int) -> Task:
        kind = self._rooms.kind(split, number)
        goal = goal_of(kind.boxes, self._settings.rules)
        payload = {"goal": goal, "split": split, "number": number}
        return Task(f"{split} {number}", [], payload, kind=kind.name)
