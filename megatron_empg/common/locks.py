"""Files that one process has to itself; the lock goes with the file's closing, however a process ends."""

from __future__ import annotations

import fcntl
from typing import IO, Any


def hold(file: IO[Any] | int, busy: Exception) -> None:
    """Lock an open file, or the one of a descriptor.

    Raises `busy` when another process holds it, OSError where there can be no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy from None


def hold_where_possible(file: IO[Any] | int, busy: Exception) -> bool:
    """Like `hold`, but returns False where there can be no locks, as on some cluster file systems.

    To keep the file to one process is then the user's.
    """
    try:
        hold(file, busy)
    except OSError as error:
        if error is busy:
            raise
        return False
    return True
