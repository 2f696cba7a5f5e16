"""The interfaces of an environment: a source of tasks, and episodes that are played turn by turn.

An environment is a plug-in: a class derived from `TaskSource`. docs/environments.md shows a small one.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypedDict, runtime_checkable

from megatron_empg.environments.settings import EnvironmentSettings

Split = Literal["train", "test_id", "test_ood"]
SPLITS: tuple[Split, ...] = ("train", "test_id", "test_ood")


class Message(TypedDict):
    """One chat message, as a chat template reads it."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


STEP_SHARE = 0.9
"""Share of the wait around a call of an environment that the environment is given for it.

What fails within it says why: a worker process shows its last lines, a search its service. The wait could only say
that it is over."""


@dataclass(frozen=True)
class EpisodeLimits:
    """The limits of every episode: turns of the policy, and seconds of one step (None: no limit)."""

    max_turns: int = 8
    step_timeout: float | None = None


@dataclass(frozen=True)
class Task:
    """One thing to do. The policy sees `prompt` alone; `payload` is the environment's own (JSON-able).

    `gold` is the text of the turn that would answer right, in the syntax that the environment reads; None where it
    knows none. Only an algorithm sees it, which may ask how likely the policy finds it. `kind` is what an
    evaluation tells apart. `tools` are given to the chat template, as JSON schemas of functions, and
    `observation_role` is the role of the messages that answer the policy's turns. `hops` says how many facts a
    question chains, by which an evaluation tells apart too; None where that is unknown or means nothing.
    """

    id: str
    prompt: list[Message]
    payload: dict[str, Any]
    gold: str | None = None
    kind: str = "all"
    tools: tuple[dict[str, Any], ...] = ()
    observation_role: Literal["user", "tool"] = "user"
    hops: int | None = None


@dataclass(frozen=True)
class Opening:
    """How an episode begins: what the policy is told after the task's prompt, and the name of the first state.

    Where `anchor` is None the prompt is the name. For instance, a text world that shows its first room:
    ``Opening([{"role": "user", "content": "You are in the kitchen ..."}])``.
    """

    messages: list[Message] = field(default_factory=list)
    anchor: str | None = None


@dataclass(frozen=True)
class StepResult:
    """The environment's answer to a turn. `observation` is None exactly when `done`.

    An episode's reward is the sum over its steps. `success` counts when `done`: None means that a positive reward
    of the last step is a success. `malformed` says whether the turn could not be read; None where the environment
    does not judge. `anchor` names the state in which the next turn acts: turns of equal anchors are compared with
    each other by some algorithms. Where it is None the observation is the name. `info` holds what else is worth
    logging.

    `context` is all that the next turn reads, in the place of the conversation so far, which `observation` else
    goes on: an environment that shows its last few turns alone writes them anew each time. For instance
    ``[{"role": "user", "content": "... You went north and saw a door. Now you see a key. ..."}]``.
    """

    observation: str | None
    done: bool
    reward: float = 0.0
    success: bool | None = None
    malformed: bool | None = None
    anchor: str | None = None
    info: dict[str, float | str | bool] = field(default_factory=dict)
    context: list[Message] | None = None


@runtime_checkable
class Environment(Protocol):
    """One running episode. The caller enforces the turn limit; observations may hold any text.

    The methods run on the event loop of all episodes, so they must not block: `blocking.in_thread` is for calls
    that do. A source whose `isolation` is "process" may block as it likes.
    """

    async def reset(self) -> Opening:
        """Begin the episode. It is called once, before anything else."""
        ...

    async def step(self, action: str) -> StepResult:
        """Carry out the text of one assistant turn. Raises RuntimeError once the episode is done."""
        ...

    async def close(self) -> None:
        """Release everything. It is always called, also after errors and a cancelled step, and perhaps twice."""
        ...


@runtime_checkable
class WaitsForItsPlace(Protocol):
    """The second interface of an `Environment` that must wait before it can begin, as for a worker process."""

    async def admitted(self) -> None:
        """Return once `reset` can begin. Called at most once, before it; the environment keeps its own limits."""
        ...


async def admission(environment: Environment) -> None:
    """Wait until the episode may begin. That is no part of the time of its `reset`."""
    if isinstance(environment, WaitsForItsPlace):
        await environment.admitted()


@dataclass(frozen=True)
class SideService:
    """A server that episodes need, started beside the run: ``python ARGUMENTS --host HOST --port PORT``.

    `setting` is the key of the environment's settings that gets its URL, `token_variable` the variable of the
    process environment that holds its token.
    """

    name: str
    setting: str
    arguments: tuple[str, ...]
    token_variable: str


class TaskSource(ABC):
    """A plug-in: tasks by split, and an episode for each."""

    Settings: ClassVar[type[EnvironmentSettings]] = EnvironmentSettings
    """The model of `environment.settings`: its keys are what a recipe may say."""
    isolation: ClassVar[Literal["coroutine", "process"]] = "coroutine"
    """Where episodes run: on the event loop, or each in a worker process of its own."""
    worker_memory_gib: ClassVar[float] = 0.5
    """GiB that a worker process may take, where `isolation` is "process"."""
    deterministic: ClassVar[bool] = True
    """Whether the same turns on the same task are answered the same; `empg environments check` tests it."""

    def __init__(self, settings: EnvironmentSettings, limits: EpisodeLimits) -> None:
        """Raises ValueError for settings that cannot be, OSError for data that cannot be read."""
        self.settings = settings
        self.limits = limits
        self._by_kind: dict[Split, list[list[int]]] = {}

    @abstractmethod
    def tasks(self, split: Split) -> Sequence[Task]:
        """All tasks of a split, in a fixed order."""

    @abstractmethod
    def make(self, task: Task) -> Environment:
        """An episode of `task` that has not begun. It costs nothing: what takes time belongs into `reset`."""

    def sample(self, split: Split, count: int, seed: int) -> list[Task]:
        """`count` tasks, the same for the same seed, balanced over kinds, different as long as there are more."""
        return self._draw(split, count, random.Random(f"{split} {seed}"))

    def fixed(self, split: Split, count: int) -> list[Task]:
        """A fixed evaluation set of `count` different tasks; a shorter one is a prefix of a longer one.

        Raises ValueError if the split has fewer.
        """
        there = len(self.tasks(split))
        if count > there:
            raise ValueError(f"fixed: {count} {split} tasks were asked for; there are {there}")
        return self._draw(split, count, random.Random(f"{split} fixed"))

    def demonstrations(self) -> Demonstrations | None:
        """Scripted walkthroughs to learn from; None where there are none."""
        if not isinstance(self, Demonstrations):
            return None
        return self

    def rehearse(self, task: Task) -> list[str]:
        """Texts of turns that try an episode's tools, for a check without a policy. Empty where none are known."""
        return []

    def metrics(self) -> dict[str, float]:
        """The source's own counts since it was made: finite numbers under names ``environment/NAME``."""
        return {}

    def warm_up(self) -> None:  # noqa: B027 - most have no engine that is slow to start
        """Start the engine that episodes need.

        Called in a worker process before its first episode, within the time that its start may take, so that the
        first reset does not pay for it. May raise anything: the worker is then one that did not start.
        """

    async def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Release what all episodes share. Called once they are over."""

    @classmethod
    def services(cls, settings: EnvironmentSettings) -> tuple[SideService, ...]:
        """The servers that episodes of these settings need beside the run."""
        return ()

    @classmethod
    def turns_are_samples(cls, settings: EnvironmentSettings) -> bool:
        """Whether each turn reads a `StepResult.context`, so that an episode has a token sequence for each."""
        return False

    @classmethod
    def worker_python(cls, settings: EnvironmentSettings) -> Path | None:
        """The interpreter that worker processes run in, of an engine with an environment of its own.

        None for this one. Raises ValueError, with what to do, where there is none.
        """
        return None

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of keys that the recipe does not give, as JSON. `given` are those that it gives."""
        return cls.Settings.json_defaults()

    @classmethod
    def caveats(cls, settings: EnvironmentSettings) -> tuple[str, ...]:
        """Why success under these settings may not be held against the published environment's, a phrase each.

        For instance ``("generated games: no game of the published data is played",)``. Asked where a run runs, of
        whose data it may know; costs nothing.
        """
        return ()

    def _draw(self, split: Split, count: int, rng: random.Random) -> list[Task]:
        tasks = self.tasks(split)
        if count and not len(tasks):
            raise ValueError(f"{count} {split} tasks were asked for; there are none")
        kinds = self._indices_by_kind(split, tasks)
        left: list[list[int]] = [[] for _ in kinds]
        drawn: list[Task] = []
        while len(drawn) < count:
            fresh = [kind for kind in left if kind]
            if not fresh:
                # All are drawn (or none yet): another pass over every task, in another order.
                left = [rng.sample(kind, len(kind)) for kind in kinds]
                continue
            drawn.append(tasks[rng.choice(fresh).pop()])
        return drawn

    def _indices_by_kind(self, split: Split, tasks: Sequence[Task]) -> list[list[int]]:
        if split not in self._by_kind:
            found: dict[str, list[int]] = {}
            for index, task in enumerate(tasks):
                found.setdefault(task.kind, []).append(index)
            self._by_kind[split] = list(found.values())
        return self._by_kind[split]


class DemonstratedTurn(NamedTuple):
    """A turn of a scripted agent, and the environment's answer to it, as in `StepResult`."""

    action: str
    observation: str | None
    context: list[Message] | None = None


@dataclass(frozen=True)
class Walkthrough:
    """An episode of a scripted agent. `opening` is what `reset` gives."""

    turns: list[DemonstratedTurn]
    opening: Opening = field(default_factory=Opening)


@runtime_checkable
class Demonstrations(Protocol):
    """The second interface of a task source on which a policy can be warmed up."""

    def walkthrough(self, task: Task, seed: int) -> Walkthrough:
        """A demonstration: an episode of a scripted agent, answered as the environment would answer it."""
        ...
