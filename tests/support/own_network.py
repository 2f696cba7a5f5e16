"""A loopback interface of this process's own, which can be made slow: nothing else on the machine notices."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

CLONE_NEWNET = 0x40000000
"""Of linux/sched.h; Python has os.unshare and os.setns from 3.12 on."""


def missing_for_own_network() -> list[str]:
    """What a machine lacks for it."""
    missing = [tool for tool in ("ip", "tc", "ss") if shutil.which(tool) is None]
    return missing + ([] if os.geteuid() == 0 else ["root"])


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and every process that it starts meanwhile, is in a new network namespace, which has a loopback
    interface alone. Threads that were there before stay where they are."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net", "rb") as before:
        _checked(libc.unshare(CLONE_NEWNET))
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            _checked(libc.setns(before.fileno(), CLONE_NEWNET))


def _checked(status: int) -> None:
    if status:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def slow_loopback(rate: str) -> Iterator[None]:
    """The loopback interface sends so much and no more, and drops what waits longer than 400 ms; `rate` is in tc's
    words, as in "20mbit"."""
    # A packet of loopback has up to 64 KiB, and a burst must hold one.
    shape = ["tbf", "rate", rate, "burst", "128kb", "latency", "400ms"]
    subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", *shape], check=True)
    try:
        yield
    finally:
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=True)
