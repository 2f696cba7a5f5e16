"""A source of tasks in a world of text commands: what is left for each world to say."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from megatron_empg.environments.base import (
    DemonstratedTurn,
    Demonstrations,
    EpisodeLimits,
    Task,
    TaskSource,
    Walkthrough,
)
from megatron_empg.environments.blocking import run_at_once
from megatron_empg.environments.settings import EnvironmentSettings
from megatron_empg.environments.text_worlds.episode import TextWorldEpisode
from megatron_empg.environments.text_worlds.prompt import TextWorldPrompt
from megatron_empg.environments.text_worlds.settings import TextWorldSettings
from megatron_empg.environments.text_worlds.turns import write_turn
from megatron_empg.environments.text_worlds.world import World


@dataclass(frozen=True)
class ScriptedTurn:
    """What a scripted agent thinks, and the command that it writes."""

    thought: str
    command: str


@dataclass(frozen=True)
class Script:
    """The turns of a scripted agent, and the world that answers them: an engine, or a record of one."""

    world: World
    turns: list[ScriptedTurn]


class TextWorldSource(TaskSource):
    """Its tasks have no prompt, as the opening says all, and the `goal` in their payload."""

    Settings: ClassVar[type[EnvironmentSettings]] = TextWorldSettings
    in_threads: ClassVar[bool] = False
    """Whether calls of a world would hold up other episodes; not where `isolation` is "process"."""

    def __init__(self, settings: TextWorldSettings, limits: EpisodeLimits) -> None:
        super().__init__(settings, limits)
        self.text_settings = settings

    @classmethod
    def turns_are_samples(cls, settings: EnvironmentSettings) -> bool:
        """Where the prompt shows a window of turns."""
        assert isinstance(settings, TextWorldSettings)
        return settings.windowed

    @abstractmethod
    def world(self, task: Task) -> World:
        """A world that has not begun. Costs nothing."""

    @abstractmethod
    def prompt(self, task: Task) -> TextWorldPrompt:
        """What the policy is told of the world."""

    def goal(self, task: Task) -> str:
        """What is to be done, as the policy reads it."""
        return str(task.payload["goal"])

    def scripted(self, task: Task, seed: int) -> Script | None:
        """An episode of a scripted agent; None where there is none."""
        return None

    @property
    def has_scripts(self) -> bool:
        """Whether `scripted` knows an agent under these settings."""
        return type(self).scripted is not TextWorldSource.scripted

    def make(self, task: Task) -> TextWorldEpisode:
        """An episode that has not begun."""
        return self._episode(task, self.world(task), in_threads=self.in_threads)

    def demonstrations(self) -> Demonstrations | None:
        """Itself, where there is a scripted agent."""
        if not self.has_scripts:
            return None
        return self

    def walkthrough(self, task: Task, seed: int) -> Walkthrough:
        """The scripted agent's turns, played. Raises ValueError for a task that it cannot play."""
        script = self.scripted(task, seed)
        if script is None:
            raise ValueError(f"task {task.id!r} has no scripted agent, so it cannot be demonstrated")
        return self._played(task, script)

    def _played(self, task: Task, script: Script) -> Walkthrough:
        episode = self._episode(task, script.world, in_threads=False)
        try:
            opening = run_at_once(episode.reset())
            turns: list[DemonstratedTurn] = []
            for turn in script.turns[: self.limits.max_turns]:
                action = write_turn(turn.thought, turn.command)
                result = run_at_once(episode.step(action))
                turns.append(DemonstratedTurn(action, result.observation, result.context))
                if result.done:
                    break
        finally:
            run_at_once(episode.close())
        return Walkthrough(turns, opening)

    def rehearse(self, task: Task) -> list[str]:
        """The scripted agent's turns."""
        script = None
        if self.has_scripts:
            script = self.scripted(task, 0)
        if script is None:
            return []
        return [turn.action for turn in self._played(task, script).turns]

    def _episode(self, task: Task, world: World, *, in_threads: bool) -> TextWorldEpisode:
        prompt = self.prompt(task)
        return TextWorldEpisode(world, prompt, self.goal(task), self.text_settings, in_threads=in_threads)
