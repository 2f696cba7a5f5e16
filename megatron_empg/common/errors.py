"""The base of the project's errors, which say what is wrong and how to fix it, and how a program ends by one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class EmpgError(Exception):
    """A fault that somebody can fix: the message names the thing, its value, the rule and the fix.

    Nobody needs to see where it arose, so a program ends with the message alone. A subclass also derives from
    RuntimeError or ValueError where callers that do not know the project expect one.
    """

    exit_code: int = 1
    """With which a program ends that it ends: 2 where what the user gave cannot be used, 1 otherwise."""
    accident: bool = False
    """Whether it need not come again when a run goes on, as when another of its processes was killed."""


LASTING_FAULT = 78
"""Status of a process of a run that would fail in the same way again (sysexits' EX_CONFIG): one of the project's
own errors, such as a setting that cannot be or a policy that diverged. Every other status may be an accident."""
HUNG = 17
"""Status of the watchdog when ranks hang or a GPU fails, and of a job that is given up for its watchdog."""


def without_prefix(message: str) -> str:
    """What a validator said, without the words that pydantic puts before it."""
    return message.removeprefix("Value error, ")


@contextmanager
def told_plainly() -> Iterator[None]:
    """One of the project's errors ends the program: ``error: …`` on stderr, its exit code, and no traceback."""
    try:
        yield
    except EmpgError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None


@contextmanager
def told_to_the_launcher() -> Iterator[None]:
    """Like `told_plainly`, for a process of a run: it exits with LASTING_FAULT
    unless the error is an accident."""
    try:
        yield
    except EmpgError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code if error.accident else LASTING_FAULT) from None
