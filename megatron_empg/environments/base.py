"""What an environment is: tasks to draw, and one running episode to step through."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

Split = Literal["train", "test_id", "test_ood"]
SPLITS: tuple[Split, ...] = ("train", "test_id", "test_ood")


class Message(TypedDict):
    """One chat message, as a chat template reads it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Task:
    """One thing to do. `payload` is the environment's own (JSON-able); the policy sees `prompt` alone.

    `gold` is the text of the turn that would answer right, in the syntax that the environment reads; None where it
    knows none. Only an algorithm sees it, which may ask how likely the policy finds it.
    """

    id: str
    prompt: list[Message]
    payload: dict[str, Any]
    gold: str | None = None


@dataclass(frozen=True)
class StepResult:
    """What an action brought about. `observation` is None exactly when `done`.

    An episode's reward is the sum over its steps. `info["success"]` of the last step says whether it succeeded;
    without it a positive reward of that step does. `anchor` names the state in which the next turn acts: turns of
    equal anchors are compared with each other by some algorithms. Where it is None the observation is the name.
    """

    observation: str | None
    done: bool
    reward: float = 0.0
    info: dict[str, float | str | bool] = field(default_factory=dict)
    anchor: str | None = None


@runtime_checkable
class Environment(Protocol):
    """One running episode. The caller enforces the turn limit; observations may hold any text."""

    def step(self, action: str) -> StepResult:
        """Carry out the text of one assistant turn. Raises RuntimeError once the episode is done."""
        ...


@runtime_checkable
class TaskSource(Protocol):
    """Tasks by split, environments for them, and scripted walkthroughs for supervised warm-up."""

    def tasks(self, split: Split) -> Sequence[Task]:
        """All tasks of a split, in a fixed order."""
        ...

    def sample(self, split: Split, count: int, seed: int) -> list[Task]:
        """`count` tasks, the same for the same seed, balanced over the split's kinds of task."""
        ...

    def fixed(self, split: Split, count: int) -> list[Task]:
        """A fixed evaluation set of `count` different tasks; a shorter one is a prefix of a longer one."""
        ...

    def make(self, task: Task) -> Environment:
        """A fresh episode of `task`."""
        ...

    def walkthrough(self, task: Task, seed: int) -> list[tuple[str, str | None]]:
        """(action, observation) turns of a scripted agent; the last observation is None if it finished."""
        ...
