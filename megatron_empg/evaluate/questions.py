"""What is asked: the fixed questions of each split, in each decoding, and what a question's outcome was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_empg.environments.base import Split, Task, TaskSource
from megatron_empg.evaluate.errors import EvaluationError
from megatron_empg.rollout.config import EvaluationConfig

Decoding = Literal["sampled", "greedy"]
End = Literal["success", "failure", "truncated", "error"]


@dataclass(frozen=True)
class SampleOutcome:
    """How one sample of one question ended. An error is no success, whatever it came from.

    `turns` and `tokens` are the policy's own. `hops` is None where the task does not say. `question` is the
    fingerprint of what was asked, by `fingerprint_task`.
    """

    id: str
    split: str
    decoding: Decoding
    kind: str
    hops: int | None
    sample: int
    success: bool
    end: End
    reward: float
    turns: int
    tokens: int
    error: str | None
    question: str


@dataclass(frozen=True)
class EvaluationPass:
    """One split in one decoding: the tasks, each in `samples` samples."""

    split: Split
    decoding: Decoding
    tasks: Sequence[Task]
    samples: int

    @property
    def name(self) -> str:
        return f"{self.split} {self.decoding}"

    @property
    def episodes(self) -> int:
        return len(self.tasks) * self.samples


def passes(source: TaskSource, asked: EvaluationConfig, samples: int) -> list[EvaluationPass]:
    """Every pass of an evaluation. Greedy decoding gives the same answer each time, so it is asked for once.

    Raises EvaluationError where two questions of a split have one name, or one has hops that are no number.
    """
    tasks: dict[Split, Sequence[Task]] = {}
    for split in asked.splits:
        tasks[split] = source.fixed(split, asked.questions)
        _check(split, tasks[split])
    found: list[EvaluationPass] = []
    for split, greedy in asked.grid():
        if greedy:
            found.append(EvaluationPass(split, "greedy", tasks[split], 1))
        else:
            found.append(EvaluationPass(split, "sampled", tasks[split], samples))
    return found


def _check(split: Split, tasks: Sequence[Task]) -> None:
    names = {task.id for task in tasks}
    if len(names) < len(tasks):
        raise EvaluationError(
            f"{split}: {len(tasks)} questions have {len(names)} names between them; the environment must give "
            "each task an id of its own"
        )
    for task in tasks:
        if task.hops is not None and type(task.hops) is not int:  # True is an int too
            raise EvaluationError(
                f"{split}: the hops of question {task.id!r} are {task.hops!r}; the environment must give a whole "
                "number or None"
            )


def fingerprint_task(task: Task) -> str:
    """16 hexadecimal digits that stand for all that a task says: its prompt, its answer, its tools."""
    said = [task.id, task.prompt, task.payload, task.gold, task.kind, task.tools]
    text = json.dumps(said, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
