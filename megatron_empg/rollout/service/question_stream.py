"""The tasks of a stream's groups: each follows from the run's seed and the group's number alone."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator

from megatron_empg.environments.base import Task, TaskSource
from megatron_empg.rollout.seeds import derive_seed

STREAM_STEP = -3
"""Stands for the training step in the seeds by which a stream's questions are drawn."""
CHUNK = 256
"""Tasks of one draw. What it is decides which task a number has."""


class QuestionStream:
    """Tasks by the numbers of groups, none twice before the split is over; then all of them in another order.

    They are drawn as the source draws, which may balance kinds. Where its draws bring little new, the tasks that
    are left of the split follow. Nobody will ask for numbers below `first` but for those of `again`.
    """

    def __init__(self, source: TaskSource, seed: int, *, first: int = 0, again: Collection[int] = ()) -> None:
        self._source, self._seed = source, seed
        self._first, self._again = first, frozenset(again)
        self._drawn = self._passes()
        self._next = 0
        self._kept: dict[int, Task] = {}

    def task(self, number: int) -> Task:
        """The task of a group, to be asked for once. Blocks while tasks are drawn. Raises as the source does."""
        while self._next <= number:
            task = next(self._drawn)
            if self._next >= self._first or self._next in self._again:
                self._kept[self._next] = task
            self._next += 1
        return self._kept.pop(number)

    def _passes(self) -> Iterator[Task]:
        passed = 0
        while True:
            yield from self._one_pass(passed)
            passed += 1

    def _one_pass(self, passed: int) -> Iterator[Task]:
        """All tasks of the split, each once."""
        seen: set[str] = set()
        draws = 0
        while True:
            seed = derive_seed(self._seed, STREAM_STEP, f"pass {passed}", draws, 0)
            fresh = []
            for task in self._source.sample("train", CHUNK, seed):
                if task.id not in seen:
                    seen.add(task.id)
                    fresh.append(task)
            yield from fresh
            draws += 1
            if len(fresh) < CHUNK // 2:
                break
        left = [task for task in self._source.tasks("train") if task.id not in seen]
        random.Random(derive_seed(self._seed, STREAM_STEP, f"rest {passed}", 0, 0)).shuffle(left)
        yield from left
