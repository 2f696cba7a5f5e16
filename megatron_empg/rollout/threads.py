"""Work off the event loop: threads for calls that may hang, and for text too long to read in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


async def apart(large: bool, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Do large work in a thread, so that it does not hold up the other episodes, and small work at once."""
    if large:
        return await asyncio.to_thread(work, *args, **kwargs)
    return work(*args, **kwargs)


class PatientThreads(Executor):
    """An executor whose calls never wait for each other.

    A call takes a thread that is free, or else a new one, where ThreadPoolExecutor would let it stand behind
    calls that hang. The threads are daemons: one that hangs does not hold up the end of the process.
    """

    def __init__(self, most: int = 4096) -> None:
        """`most`: calls at once above which `submit` refuses, since so many can only hang."""
        self._most = most
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0

    @property
    def running(self) -> int:
        """Calls under way. Those that nobody waits for any more are among them: a thread cannot be ended."""
        with self._lock:
            return self._threads - self._free

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run the call. Raises RuntimeError when `most` others are under way."""
        future: Future[R] = Future()
        with self._lock:
            if self._free:
                self._free -= 1
            elif self._threads < self._most:
                threading.Thread(target=self._work, name="call", daemon=True).start()
                self._threads += 1
            else:
                raise RuntimeError(f"{self._most} calls are under way already: they hang")
        self._calls.put(lambda: _run(future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the free threads. Never waits for the others."""
        with self._lock:
            free, self._free = self._free, 0
            self._threads -= free
        for _ in range(free):
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # what it holds must not live until the next one
            with self._lock:
                self._free += 1


def _run(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
