"""Processes that end with whoever started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
PARENT_VARIABLE = "EMPG_PARENT_PID"
"""The process id of who starts a process, for the process itself to read; a launcher puts its own there."""


def die_with_parent(parent_pid: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies. Called by the child itself; no-op off Linux.

    `parent_pid`: the parent the caller expects, else the one that EMPG_PARENT_PID names. If that one is gone
    already, this process exits at once, which closes the gap between start and this call; call it before imports
    that take seconds all the same. The kernel watches the parent's *thread* that started the child (prctl(2),
    PR_SET_PDEATHSIG): start long-lived children from a thread that lives as long.
    """
    told = os.environ.pop(PARENT_VARIABLE, "")  # it is not the parent of this process's own children
    if parent_pid is None and told:
        parent_pid = int(told)
    if not sys.platform.startswith("linux"):
        return
    signal_when_parent_dies(signal.SIGKILL)
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(1)


def signal_when_parent_dies(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent (the thread that started it) dies. Linux only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def forked_children_die_with_parent() -> None:
    """Apply `die_with_parent` to every child this process forks from now on (not to spawned programs)."""
    forking: list[int] = []

    def after_in_child() -> None:
        die_with_parent(forking[-1])

    os.register_at_fork(before=lambda: forking.append(os.getpid()), after_in_child=after_in_child)


def end_process_group_with_this_process(*descriptors: int) -> None:
    """Leave a child behind that waits until this process has ended, however it does, and ends the whole group.

    So what this process started ends with it even when nobody is left to do it: the kernel's own signal reaches
    children, not theirs. `descriptors`: files that the child must not keep open. Called by the leader of a group
    while it has no threads, and early, as the child keeps what is in memory by then. No-op off Linux.
    """
    if not sys.platform.startswith("linux"):
        return
    leader = os.getpid()
    if os.fork() != 0:
        return
    for descriptor in (0, 1, 2, *descriptors):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal_when_parent_dies(signal.SIGTERM)
    while os.getppid() == leader:
        signal.sigwait({signal.SIGTERM})
    os.killpg(leader, signal.SIGKILL)
