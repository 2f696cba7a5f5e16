"""Calls that block, off the event loop: each in a thread, and none behind another that hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class PatientThreads(Executor):
    """An executor whose calls never wait for each other.

    A call takes a thread that is free, or else a new one, where ThreadPoolExecutor would let it stand behind
    calls that hang. The threads are daemons: one that hangs does not hold up the end of the process.
    """

    def __init__(self, most: int = 4096) -> None:
        """`most`: calls at once above which `submit` refuses: each has a thread of its own."""
        self._most = most
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0
        self._left_behind = 0

    @property
    def running(self) -> int:
        """Calls under way. Those that nobody waits for any more are among them: a thread cannot be ended."""
        with self._lock:
            return self._threads - self._free

    @property
    def left_behind(self) -> int:
        """Those of them that nobody waits for any more."""
        with self._lock:
            return self._left_behind

    def leave_behind(self, call: Future[Any]) -> None:
        """Nobody waits for this call any more. One that has not begun never does."""
        call.cancel()
        with self._lock:
            self._left_behind += 1
        call.add_done_callback(self._over)

    def _over(self, call: Future[Any]) -> None:
        with self._lock:
            self._left_behind -= 1

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
                raise RuntimeError(
                    f"{self._most} calls that block are under way already, of which {self._left_behind} go on "
                    "though nobody waits for them, and no more are begun. Have fewer episodes at once "
                    "(rollout.concurrency), or fix what does not answer"
                )
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


CALLS = PatientThreads()
"""Where all calls of `in_thread` run."""


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a call that blocks, and wait for it. Whoever stops waiting leaves it behind: it cannot be ended."""
    threads = CALLS
    call = threads.submit(function, *args, **kwargs)
    try:
        return await asyncio.wrap_future(call)
    except asyncio.CancelledError:
        threads.leave_behind(call)
        raise


def run_at_once(coroutine: Coroutine[Any, Any, R]) -> R:
    """The result of a coroutine that never waits for anything. Raises RuntimeError for one that does."""
    try:
        coroutine.send(None)
    except StopIteration as result:
        value: R = result.value
        return value
    coroutine.close()
    raise RuntimeError("the coroutine waits for something; await it on an event loop")
