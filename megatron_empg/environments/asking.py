"""One call of an environment's code on the event loop of all episodes, which ends nothing but itself.

The call is a task of its own. Whatever it does there, leaving the process, cancelling itself and catching its own
cancellation among it, is told to the caller as an error. What a call starts as tasks of its own is not looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from asyncio.tasks import _unregister_task
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from weakref import WeakSet

from megatron_empg.common.errors import EmpgError

R = TypeVar("R")

_left_behind: WeakSet[asyncio.Task[Any]] = WeakSet()


class EnvironmentSilent(EmpgError, RuntimeError):
    """The environment did not answer within its time."""


class EnvironmentMisbehaved(EmpgError, RuntimeError):
    """The environment did what would have ended more than its episode."""


async def answer_of(doing: str, method: Callable[[], Awaitable[R]], seconds: float | None = None) -> R:
    """What `method` answers within so many seconds (no limit when None); `doing` names it in errors.

    Raises EnvironmentSilent, EnvironmentMisbehaved, and every Exception of the environment's own. A call that does
    not answer, or whose caller is cancelled, is cancelled and not waited for.
    """
    task = asyncio.ensure_future(guarded(doing, method))
    try:
        # asyncio.wait, unlike wait_for, leaves a TimeoutError of the environment's own what it is, and does not
        # wait for a task that catches its cancellation.
        await asyncio.wait([task], timeout=seconds)
    finally:
        over = task.done()
        if not over:
            leave_behind(task)
    if not over:
        raise EnvironmentSilent(f"{doing} took more than {seconds:g} s")
    if task.cancelled():
        raise EnvironmentMisbehaved(f"the environment cancelled its own {doing}")
    error = task.exception()
    if error is not None and not isinstance(error, Exception | KeyboardInterrupt):
        raise misbehaviour(doing, error) from error
    return task.result()


def misbehaviour(doing: str, error: BaseException) -> EnvironmentMisbehaved:
    """What is said of an exception that is no Exception."""
    return EnvironmentMisbehaved(f"the environment raised {type(error).__name__} in {doing}: {error}")


async def abandon_what_was_left_behind(seconds: float) -> None:
    """Give calls that still run so many seconds to end before their event loop ends, then stop waiting for them.

    Without this the end of `asyncio.run` waits forever for a task that catches its cancellation.
    """
    loop = asyncio.get_running_loop()
    left = [task for task in _left_behind if not task.done() and task.get_loop() is loop]
    if not left:
        return
    _, going_on = await asyncio.wait(left, timeout=seconds)
    for task in going_on:
        _unregister_task(task)


async def guarded(doing: str, method: Callable[[], Awaitable[R]]) -> R:
    """What `method` answers. Leaving the process is told as an EnvironmentMisbehaved."""
    try:
        answer = method()
        if not inspect.isawaitable(answer):
            raise TypeError(f"{doing} is not a coroutine: write `async def {doing}`")
        return await answer
    except SystemExit as error:  # a task that ends with it ends the event loop
        raise misbehaviour(doing, error) from error


def leave_behind(task: asyncio.Task[Any]) -> None:
    """Cancel a call that nobody waits for any more."""
    _left_behind.add(task)
    # What it still does or raises concerns nobody.
    task.add_done_callback(_forget)
    task.cancel()


def _forget(task: asyncio.Task[Any]) -> None:
    with contextlib.suppress(BaseException):
        task.exception()
