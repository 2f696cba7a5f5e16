"""Faults of a run's processes, connections, network, disk and search, each done at a moment that is waited for."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.disturbed_run import Disturbed
from tests.support.own_network import slow_loopback

STALL = 5.0
"""Seconds that a stalled process does nothing: less than what counts as frozen."""
FULL = 10.0
"""Seconds that a disk has no room: steps of three or four."""
RATE = "50mbit"
"""Of a slow network: tensor-parallel ranks, new weights and all requests have 6 MB per second together."""
WORKER = "faulthandler"
"""A word of the command line of an environment's worker process, and of no other child of the service."""

Moment = Callable[[], bool]
"""Whether the run is at something now."""
Fault = Callable[[], Callable[[], bool]]
"""Does a fault; what it returns says whether the run does again what the fault has ended."""


@dataclass
class Happened:
    """What was done to the run, and how it went on."""

    name: str
    phase: str
    """Of the trainer's first rank by its heartbeat, when it was done."""
    flying: bool
    """Whether requests ran in an engine then."""
    seconds: float
    """Until the run did again what the fault had ended."""

    @property
    def in_flight(self) -> bool:
        """Whether a request of an engine was, or an update, a transfer or a checkpoint of the trainer."""
        return self.flying or self.phase in ("update", "sync", "checkpoint")


@dataclass
class Chaos:
    """Disturbs a run, and notes each fault."""

    run: Disturbed
    faults: list[Happened] = field(default_factory=list)
    load: float = field(default_factory=lambda: max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))
    """Processes that wanted a core, by the cores, before the run was started; at least 1."""

    def do(self, name: str, when: Moment, fault: Fault) -> None:
        """Do a fault when the run is at something, and wait until what ``fault`` returned says that it is over."""
        self.run.after_a_step()
        self.run.until(when, f"{name}: the moment for it")
        phase, flying = self.run.phase(), any(one.generates() for one in self.run.servers("engine"))
        began = time.monotonic()
        over = fault()
        self.run.until(over, f"{name}: over")
        self.faults.append(Happened(name, phase, flying, time.monotonic() - began))
        doing = f"{phase}, requests running" if flying else phase
        print(f"\n{name}, in {doing}: {self.faults[-1].seconds:.1f} s", end="")

    def do_all(self, faults: Iterator[tuple[str, Moment, Fault]]) -> None:
        """One after the other, and end the run behind the next step."""
        try:
            for name, when, fault in faults:
                self.do(name, when, fault)
            print()
            self.run.after_a_step()
            self.run.stop()
        finally:
            self.run.give_up()

    def slower_than(self, seconds: float) -> list[Happened]:
        """Faults that were not over in time, as measured on a machine that does nothing else."""
        return [fault for fault in self.faults if fault.seconds >= seconds * self.load]

    # Moments

    def playing(self) -> bool:
        """Requests run in the last engine."""
        return self.run.server("engine").generates()

    def syncing(self) -> bool:
        """The last engine is paused for new weights."""
        return self.run.server("engine").is_paused()

    def in_phase(self, phase: str) -> Moment:
        return lambda: self.run.phase() == phase

    # What is over when the run does it again

    def another_step(self) -> Callable[[], bool]:
        """A step is logged that is not yet."""
        logged = self.run.done()
        return lambda: self.run.done() > logged

    def another_start(self) -> Callable[[], bool]:
        """Everything was started again, and a step is logged that is not yet."""
        logged, before = self.run.done(), len(self.run.starts())
        return lambda: len(self.run.starts()) > before and self.run.done() > logged

    # Faults

    def server_gets(self, kind: str, number: signal.Signals, *, core: bool = False) -> Fault:
        """A server, or the process in it that computes, gets a signal that takes it out for good."""

        def fault() -> Callable[[], bool]:
            server = self.run.server(kind)
            (server.core() if core else psutil.Process(server.pid)).send_signal(number)
            return lambda: self.run.is_back(server)

        return fault

    def stalls(self, kind: str) -> Fault:
        """A server does nothing for a while, and goes on."""

        def fault() -> Callable[[], bool]:
            process, over = psutil.Process(self.run.server(kind).pid), self.another_step()
            process.suspend()
            time.sleep(STALL)
            process.resume()
            return over

        return fault

    def connections_cut(self, kind: str) -> Fault:
        """Everybody's connections to a server are reset."""

        def fault() -> Callable[[], bool]:
            port = self.run.server(kind).url.rpartition(":")[2]
            over = self.another_step()
            command = ["ss", "-H", "-K", "dport", "=", f":{port}"]
            closed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert f":{port}" in closed, "no connection was there to be cut"
            return over

        return fault

    def trainer_gets(self, kind: str, number: signal.Signals) -> Fault:
        """A rank, or what started the ranks: everything is started again."""

        def fault() -> Callable[[], bool]:
            over = self.another_start()
            self.run.processes(kind)[-1].send_signal(number)
            return over

        return fault

    def worker_gets(self, number: signal.Signals) -> Fault:
        """A worker process of the environment."""

        def fault() -> Callable[[], bool]:
            service = psutil.Process(self.run.server("driver").pid)
            workers = [child for child in service.children() if WORKER in child.cmdline()]
            over = self.another_step()
            workers[0].send_signal(number)
            return over

        return fault

    def network_is_slow(self) -> Callable[[], bool]:
        """Until a step was made by it."""
        over = self.another_step()
        with slow_loopback(RATE):
            self.run.until(over, "a step by a slow network")
        return over

    def disk_is_full(self) -> Callable[[], bool]:
        """For a while no byte can be written to the run folder, its logs among it."""
        ballast, over = self.run.folder.parent / "ballast", self.another_step()
        fill(ballast)
        time.sleep(FULL)
        ballast.unlink()
        return over


def fill(ballast: Path) -> None:
    """Take all room that there is."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):  # no space left
                while True:
                    file.write(bytes(size))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own that is soon full."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk needs root: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
