"""What a worker does for itself before it runs anybody's code."""

from __future__ import annotations

import contextlib
import os
import signal

from megatron_empg.processes import signal_when_parent_dies


def be_first_when_memory_runs_out() -> None:
    """Have the kernel end this process before others when memory runs out, where it may be asked to (proc(5))."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def end_process_group_with_this_process(*connections: int) -> None:
    """Leave a child behind that waits until this process has ended, however it does, and ends the whole group.

    So what an engine started ends with it even when nobody is left to do it: the kernel's own signal reaches
    children, not theirs. `connections`: file descriptors that the child must not keep open. Call it in the leader
    of a group that has no threads yet.
    """
    leader = os.getpid()
    if os.fork() != 0:
        return
    for descriptor in (0, 1, 2, *connections):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal_when_parent_dies(signal.SIGTERM)
    while os.getppid() == leader:
        signal.sigwait({signal.SIGTERM})
    os.killpg(leader, signal.SIGKILL)
