"""The processes below a worker, and the memory they take."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """The process and all below it, as far as they live. proc(5) tells the children of each thread.

    psutil would read every process of the machine for that, which is slow on a node with thousands.
    """
    found = [pid]
    for process in found:
        # A process that ends meanwhile has no folder any more.
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{process}/task").iterdir():
                children = (thread / "children").read_text(encoding="ascii")
                found += map(int, children.split())
    return found


def memory_taken(workers: Sequence[int], limit: float) -> list[float]:
    """Bytes of each worker's processes. The sum of resident sizes, which is quick to tell; where that is above
    `limit`, what they share with others is divided among those that share it."""
    return [_memory(descendants(worker), limit) for worker in workers]


def _memory(pids: list[int], limit: float) -> float:
    resident = sum(map(_resident, pids))
    if resident <= limit:
        return resident
    return sum(map(_proportional, pids))


def _resident(pid: int) -> float:
    import psutil

    try:
        return float(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0.0


def _proportional(pid: int) -> float:
    import psutil

    try:
        return float(psutil.Process(pid).memory_full_info().pss)
    except psutil.AccessDenied:
        return _resident(pid)
    except psutil.Error:
        return 0.0
