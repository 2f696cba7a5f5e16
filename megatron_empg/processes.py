"""Processes that end with whoever started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def die_with_parent(parent_pid: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies. Called by the child itself; no-op off Linux.

    `parent_pid`: the parent the caller expects. If that one is gone already, this process exits at once, which
    closes the gap between start and this call. The kernel watches the parent's *thread* that started the
    child (prctl(2), PR_SET_PDEATHSIG): start long-lived children from a thread that lives as long.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(1)


def forked_children_die_with_parent() -> None:
    """Apply `die_with_parent` to every child this process forks from now on (not to spawned programs)."""
    forking: list[int] = []

    def after_in_child() -> None:
        die_with_parent(forking[-1])

    os.register_at_fork(before=lambda: forking.append(os.getpid()), after_in_child=after_in_child)
