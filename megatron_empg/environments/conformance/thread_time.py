"""How long an environment keeps the event loop to itself."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

R = TypeVar("R")


@dataclass
class LongestHold:
    """The longest hold of the event loop between two moments at which it may do something else.

    It has the most seconds of CPU time, which do not depend on what else the machine does, and the most that
    passed while the thread slept."""

    cpu: float = 0.0
    asleep: float = 0.0

    def of(self, answer: Awaitable[R]) -> Awaitable[R]:
        """The same, with its holds counted."""
        return _Timed(answer, self)

    def add(self, cpu: float, wall: float) -> None:
        """One of them."""
        self.cpu = max(self.cpu, cpu)
        self.asleep = max(self.asleep, wall - cpu)


class _Timed(Generic[R]):
    """Steps through a coroutine as the event loop does, with a clock at hand."""

    def __init__(self, answer: Awaitable[R], holds: LongestHold) -> None:
        self._answer = answer
        self._holds = holds

    def __await__(self) -> Generator[Any, Any, R]:
        inner = self._answer.__await__()
        thrown: BaseException | None = None
        while True:
            cpu, wall = time.thread_time(), time.monotonic()
            try:
                if thrown is None:
                    waited_for = next(inner)
                else:
                    waited_for = _throw(inner, thrown)
            except StopIteration as result:
                value: R = result.value
                return value
            finally:
                self._holds.add(time.thread_time() - cpu, time.monotonic() - wall)
            thrown = None
            try:
                yield waited_for
            except GeneratorExit:  # nobody awaits it any more; what it awaits may have been closed before it
                inner.close()
                raise
            except BaseException as error:
                thrown = error


def _throw(inner: Any, error: BaseException) -> Any:
    """Futures are awaited by generators, coroutines by wrappers: both take it."""
    return inner.throw(error)
