"""The environment under test, and how a rule plays an episode of it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from megatron_empg.environments.asking import EnvironmentMisbehaved, EnvironmentSilent, answer_of
from megatron_empg.environments.base import SPLITS, Environment, Opening, StepResult, Task, TaskSource, admission
from megatron_empg.environments.conformance.findings import RuleBroken
from megatron_empg.environments.conformance.thread_time import LongestHold
from megatron_empg.environments.shapes import opening_faults, result_faults

R = TypeVar("R")
TRAINING_TASKS = 2


@dataclass
class EnvironmentUnderTest:
    """`settings`: what is given for it. `make`: an episode where a run would play it, in a worker process perhaps.

    `call_timeout`: seconds that one call may take. `hold` is fed by every call of a coroutine environment.
    """

    name: str
    settings: dict[str, Any]
    source: TaskSource
    make: Callable[[Task], Environment]
    call_timeout: float
    hold: LongestHold = field(default_factory=LongestHold)

    @property
    def in_process(self) -> bool:
        """Whether episodes run in worker processes."""
        return self.source.isolation == "process"

    def tasks(self) -> list[Task]:
        """Some tasks to play: different ones of training, and one of each other split that has any."""
        found = self.source.sample("train", TRAINING_TASKS, seed=0)
        for split in SPLITS[1:]:
            if len(self.source.tasks(split)):
                found += self.source.sample(split, 1, seed=0)
        return list({task.id: task for task in found}.values())

    @asynccontextmanager
    async def episode(self, task: Task) -> AsyncIterator[Environment]:
        """An episode that has begun; it is closed at the end."""
        async with self.episode_with_opening(task) as (environment, _):
            yield environment

    @asynccontextmanager
    async def episode_with_opening(self, task: Task) -> AsyncIterator[tuple[Environment, Opening]]:
        """The same, and how it began."""
        environment = self.make(task)
        try:
            opening = await self.reset(environment)
            yield environment, opening
        finally:
            await self.call("close", environment.close())

    async def reset(self, environment: Environment) -> Opening:
        """Begin, and look at what comes of it. The start of a worker has its own limit."""
        await admission(environment)
        opening = await self.call("reset", environment.reset())
        _refuse_shape("reset", opening_faults(opening))
        return opening

    async def step(self, environment: Environment, action: str) -> StepResult:
        """A step, and a look at what comes of it."""
        result = await self.call("step", environment.step(action))
        _refuse_shape("step", result_faults(result))
        return result

    async def play(self, environment: Environment, actions: Sequence[str]) -> list[StepResult]:
        """Steps of an episode that has begun, until it is done or there are no more actions."""
        results: list[StepResult] = []
        for action in actions:
            results.append(await self.step(environment, action))
            if results[-1].done:
                break
        return results

    async def played(self, task: Task, actions: Sequence[str]) -> list[StepResult]:
        """A whole episode."""
        async with self.episode(task) as environment:
            return await self.play(environment, actions)

    async def call(self, what: str, answer: Awaitable[R]) -> R:
        """What a method answers, within its time. Raises RuleBroken."""
        if not inspect.isawaitable(answer):
            raise RuleBroken(f"{what} is not a coroutine: write `async def {what}`")
        if self.in_process:
            timed = answer
        else:
            timed = self.hold.of(answer)
        try:
            return await answer_of(what, lambda: timed, self.call_timeout)
        except EnvironmentSilent as silence:
            raise RuleBroken(str(silence)) from None
        except EnvironmentMisbehaved as error:
            raise RuleBroken(str(error)) from error

    def scripts(self, task: Task) -> list[list[str]]:
        """Sequences of actions that are known to mean something: those of demonstrations, the right answer, and
        what the plug-in rehearses."""
        found: list[list[str]] = []
        demonstrations = self.source.demonstrations()
        if demonstrations is not None:
            found.append([turn.action for turn in demonstrations.walkthrough(task, seed=0).turns])
        if task.gold is not None:
            found.append([task.gold])
        found.append(list(self.source.rehearse(task)))
        return [script for script in found if script]

    def longest_script(self, task: Task) -> list[str]:
        """The longest of them, or a text that means nothing where nothing is known."""
        return max(self.scripts(task), key=len, default=["a turn that means nothing"])


def _refuse_shape(what: str, faults: list[str]) -> None:
    if faults:
        raise RuleBroken(f"{what} returned " + " and ".join(faults))
