"""ScienceWorld as a plug-in: the engine's tasks by split, each played in a Java process."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import ClassVar, Literal

from megatron_empg.environments.base import STEP_SHARE, EpisodeLimits, Split, Task, Walkthrough
from megatron_empg.environments.mapped import Mapped
from megatron_empg.environments.scienceworld.caveats import caveats_of
from megatron_empg.environments.scienceworld.engine import Engine
from megatron_empg.environments.scienceworld.gold import MOST_KEPT, GoldPaths
from megatron_empg.environments.scienceworld.java_installation import installed
from megatron_empg.environments.scienceworld.prompt import prompt_of
from megatron_empg.environments.scienceworld.settings import ScienceWorldSettings
from megatron_empg.environments.scienceworld.splits import variations_of
from megatron_empg.environments.scienceworld.variations import Variation, all_tasks
from megatron_empg.environments.scienceworld.world import ScienceWorldWorld
from megatron_empg.environments.settings import EnvironmentSettings
from megatron_empg.environments.text_worlds.prompt import TextWorldPrompt
from megatron_empg.environments.text_worlds.source import Script, ScriptedTurn, TextWorldSource
from megatron_empg.environments.text_worlds.turns import write_turn

REHEARSED = ("look around", "inventory", "look at door")


class ScienceWorld(TextWorldSource):
    """The real engine, one Java process in each worker; walkthroughs are the engine's own solutions.

    The process of walkthroughs is this process's child: it starts with the first of them and ends at `close`.
    """

    Settings = ScienceWorldSettings
    isolation: ClassVar[Literal["coroutine", "process"]] = "process"
    worker_memory_gib: ClassVar[float] = 0.75

    def __init__(self, settings: ScienceWorldSettings, limits: EpisodeLimits) -> None:
        """Raises EngineUnavailable where Java or the package is missing."""
        super().__init__(settings, limits)
        self._settings = settings
        timeout = limits.step_timeout
        needed = installed()
        # What hangs is then named here, before the worker is killed for it.
        self._engine = Engine(needed, STEP_SHARE * timeout if timeout is not None else None)
        self._gold = GoldPaths(needed, settings.simplifications)
        self._shown: dict[str, Walkthrough] = {}
        self._variations: dict[Split, list[Variation]] = {}

    @classmethod
    def caveats(cls, settings: EnvironmentSettings) -> tuple[str, ...]:
        """What is otherwise than in EPO's row, the one that `empg table` shows."""
        assert isinstance(settings, ScienceWorldSettings)
        return tuple(caveats_of(settings))

    def tasks(self, split: Split) -> Sequence[Task]:
        """A task for each variation, by the task's name and the number. Raises ValueError for an unknown split."""
        if split not in self._variations:
            self._variations[split] = variations_of(split, self._settings.splits, self._settings.tasks)
        return Mapped(self._variations[split], _task)

    def goal(self, task: Task) -> str:
        """What is asked, without the words that the prompt begins with itself."""
        return super().goal(task).removeprefix("Your task is to ")

    def world(self, task: Task) -> ScienceWorldWorld:
        """A world of this process's engine."""
        return ScienceWorldWorld(self._engine, _variation(task), self._settings)

    def prompt(self, task: Task) -> TextWorldPrompt:
        """The commands that the task has, and how they are meant."""
        settings = self._settings
        return prompt_of(task.payload["task"], settings.simplifications, settings.choices, settings.rules)

    def scripted(self, task: Task, seed: int) -> Script:
        """The engine's own solution, of which an episode shows the first `max_turns` turns."""
        turns = [ScriptedTurn(_thought(command), command) for command in self._gold.path(_variation(task))]
        return Script(ScienceWorldWorld(self._gold.engine, _variation(task), self._settings), turns)

    def walkthrough(self, task: Task, seed: int) -> Walkthrough:
        """The same for every seed. Each is played once, as the engine takes a second and more for it, and
        every caller gets a copy."""
        if task.id not in self._shown:
            if len(self._shown) >= MOST_KEPT:
                self._shown.clear()
            self._shown[task.id] = super().walkthrough(task, seed)
        return deepcopy(self._shown[task.id])

    def rehearse(self, task: Task) -> list[str]:
        """Commands that every task has. No solution, which takes the engine seconds to find."""
        return [write_turn("a rehearsal", command) for command in REHEARSED]

    def warm_up(self) -> None:
        """Start the Java process, which takes seconds, and minutes on a busy node. Raises ScienceWorldFailed."""
        self._engine.start()

    async def close(self) -> None:
        """End the Java processes, where any was started."""
        self._engine.close()
        self._gold.engine.close()

    def _indices_by_kind(self, split: Split, tasks: Sequence[Task]) -> list[list[int]]:
        if self._settings.drawn == "variations":
            return [list(range(len(tasks)))]
        return super()._indices_by_kind(split, tasks)


def _task(variation: Variation) -> Task:
    goal = all_tasks()[variation.task].goal(variation.number)
    payload = {"goal": goal, "task": variation.task, "variation": variation.number}
    return Task(variation.id, [], payload, kind=variation.task)


def _variation(task: Task) -> Variation:
    return Variation(task.payload["task"], task.payload["variation"])


def _thought(command: str) -> str:
    if command.isdigit():
        return f"the answer is number {command}"
    return f"next I {command}"
