"""`empg train` under more than thirty faults, one after the other, most while something is in flight: every step
is the undisturbed run's, number for number, and on idle cores each fault is over within a minute."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from megatron_empg.common.jsonl import read_lines
from tests.end_to_end.disturbed_run import Run, Server
from tests.end_to_end.killed_runs import processes

pytestmark = pytest.mark.slow

STEPS = 1000
"""More than thirty faults need: the disturbed run is ended when it has had them, the other when it has as many."""
BACK_WITHIN = 60.0
"""Seconds, on a machine that does nothing else."""
STALL = 5.0
"""Seconds that a stalled process does nothing: less than what counts as frozen."""
DISK = "160m"
WORKER = "faulthandler"
"""A word of the command line of an environment's worker process, and of no other child of the service."""
ENVIRONMENT = "tests.support.isolated_search:IsolatedSearch"

Moment = Callable[[], bool]
"""Whether the run is at something now."""
Disturbance = Callable[[], Callable[[], bool]]
"""Does a fault; what it returns says whether the run does again what the fault has ended."""


@dataclass
class Fault:
    """What was done to the run, and how it went on."""

    name: str
    phase: str
    """Of the trainer's first rank by its heartbeat, when it was done."""
    flying: bool
    """Whether requests ran in an engine then."""
    seconds: float
    """Until the run did again what the fault had ended."""


@dataclass
class Chaos:
    """Disturbs a run, and notes each fault."""

    run: Run
    faults: list[Fault] = field(default_factory=list)
    load: float = field(default_factory=lambda: max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))
    """Processes that wanted a core, by the cores, before the run was started; at least 1."""

    @property
    def launcher(self) -> int:
        return self.run.process.pid

    def do(self, name: str, when: Moment, fault: Disturbance) -> None:
        """Do a fault when the run is at something, and wait until what ``fault`` returned says that it is over."""
        self.run.after_a_step()
        self.run.until(when, f"{name}: the moment for it")
        phase, flying = self.run.phase(), self._generates()
        began = time.monotonic()
        over = fault()
        self.run.until(over, f"{name}: over")
        self.faults.append(Fault(name, phase, flying, time.monotonic() - began))
        doing = f"{phase}, requests running" if flying else phase
        print(f"\n{name}, in {doing}: {self.faults[-1].seconds:.1f} s", end="")

    def _generates(self) -> bool:
        return any(one.generates() for one in Server.all_of(self.launcher) if one.kind == "engine")

    # Moments

    def playing(self) -> bool:
        """Requests run in the last engine."""
        return Server.of(self.launcher, "engine").generates()

    def syncing(self) -> bool:
        """The last engine is paused for new weights."""
        return Server.of(self.launcher, "engine").is_paused()

    def in_phase(self, phase: str) -> Moment:
        return lambda: self.run.phase() == phase

    # Faults

    def server_gets(self, kind: str, number: signal.Signals, *, core: bool = False) -> Disturbance:
        """A server, or the process in it that computes, gets a signal that takes it out for good."""

        def fault() -> Callable[[], bool]:
            server = Server.of(self.launcher, kind)
            (server.core() if core else psutil.Process(server.pid)).send_signal(number)
            return lambda: Server.is_back(self.launcher, server)

        return fault

    def stalls(self, kind: str) -> Disturbance:
        """A server does nothing for a while, and goes on."""

        def fault() -> Callable[[], bool]:
            process, logged = psutil.Process(Server.of(self.launcher, kind).pid), self.run.done()
            process.suspend()
            time.sleep(STALL)
            process.resume()
            return lambda: self.run.done() > logged

        return fault

    def connections_cut(self, kind: str) -> Disturbance:
        """Everybody's connections to a server are reset."""

        def fault() -> Callable[[], bool]:
            port = Server.of(self.launcher, kind).url.rpartition(":")[2]
            logged = self.run.done()
            command = ["ss", "-H", "-K", "dport", "=", f":{port}"]
            closed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert f":{port}" in closed, "no connection was there to be cut"
            return lambda: self.run.done() > logged

        return fault

    def trainer_killed(self, kind: str) -> Disturbance:
        """A rank, or what started the ranks: everything is started again, and logs its next step."""

        def fault() -> Callable[[], bool]:
            logged, before = self.run.done(), len(self.run.starts())
            processes(self.launcher, kind)[0].send_signal(signal.SIGKILL)
            return lambda: len(self.run.starts()) > before and self.run.done() > logged

        return fault

    def worker_killed(self) -> Callable[[], bool]:
        """A worker process of the environment."""
        service = psutil.Process(Server.of(self.launcher, "driver").pid)
        workers = [child for child in service.children() if WORKER in child.cmdline()]
        logged = self.run.done()
        workers[0].send_signal(signal.SIGKILL)
        return lambda: self.run.done() > logged

    def disk_full(self) -> Callable[[], bool]:
        """No byte can be written to the run folder until something could not be; then there is room again."""
        ballast, logged, before = self.run.folder.parent / "ballast", self.run.done(), len(self.run.starts())
        fill(ballast)
        self.run.until(
            lambda: len(self.run.starts()) > before or "No space left" in self.run.output, "a full disk"
        )
        ballast.unlink()
        return lambda: self.run.done() > logged

    def _told_of_the_disk(self) -> bool:
        return "No space left" in self.run.output


def fill(ballast: Path) -> None:
    """Take all room that there is."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):  # no space left
                while True:
                    file.write(bytes(size))


def faults_of(chaos: Chaos) -> Iterator[tuple[str, Moment, Disturbance]]:
    """Name, moment and fault of each, in an order in which alike ones are apart."""
    playing, syncing = chaos.playing, chaos.syncing
    kill, stop = signal.SIGKILL, signal.SIGSTOP
    for number in range(1, 4):
        yield f"engine killed as it plays, {number}", playing, chaos.server_gets("engine", kill)
        yield f"connections of an engine cut, {number}", playing, chaos.connections_cut("engine")
        yield f"engine's core killed as it plays, {number}", playing, chaos.server_gets("engine", kill, core=True)
        yield f"service killed as it plays, {number}", playing, chaos.server_gets("driver", kill)
        yield f"engine killed in a sync, {number}", syncing, chaos.server_gets("engine", kill)
        yield f"worker of the environment killed, {number}", playing, chaos.worker_killed
    for phase in ("rollout", "score", "update", "sync", "checkpoint"):
        yield f"rank killed in {phase}", chaos.in_phase(phase), chaos.trainer_killed("rank")
    for number in range(1, 3):
        yield f"engine frozen as it plays, {number}", playing, chaos.server_gets("engine", stop)
        yield f"engine stalls as it plays, {number}", playing, chaos.stalls("engine")
    yield "service frozen as it plays", playing, chaos.server_gets("driver", stop)
    yield "service stalls as it plays", playing, chaos.stalls("driver")
    yield "connections of the service cut", playing, chaos.connections_cut("driver")
    yield "torchrun killed in update", chaos.in_phase("update"), chaos.trainer_killed("torchrun")
    yield "disk full at a checkpoint", chaos.in_phase("checkpoint"), chaos.disk_full


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own that is soon full."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk and cut connections need root: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


MORE = {
    "environment.name": ENVIRONMENT,
    "limits.environment_memory": 3,
    "run.checkpoint_every": 1,
    "run.keep_checkpoints": 2,
}


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    with small_disk(tmp_path_factory.mktemp("chaos") / "disk") as disk:
        found = Chaos(Run(disk / "disturbed", 2, STEPS, MORE))
        found.run.start()
        try:
            for name, when, fault in faults_of(found):
                found.do(name, when, fault)
            found.run.after_a_step()
            found.run.stop()
        finally:
            found.run.process.kill()
        yield found


@pytest.fixture(scope="module")
def undisturbed(chaos: Chaos, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """As many steps as the disturbed run made, or one more."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run = Run(folder, 2, STEPS, MORE).start()
    run.until(lambda: run.done() >= chaos.run.done(), "as many steps")
    return run.stop()


def test_thirty_faults_are_over_within_a_minute_of_idle_cores_each(chaos: Chaos) -> None:
    print()
    assert len(chaos.faults) >= 30
    late = [fault for fault in chaos.faults if fault.seconds >= BACK_WITHIN * chaos.load]
    assert not late, late


def test_most_faults_came_while_something_was_in_flight(chaos: Chaos) -> None:
    """A request in an engine, or an update, a transfer or a checkpoint of the trainer."""
    flying = [fault for fault in chaos.faults if fault.flying or fault.phase in ("update", "sync", "checkpoint")]
    print(Counter(fault.phase for fault in chaos.faults))
    assert len(flying) >= 20


def test_every_step_is_the_undisturbed_runs(chaos: Chaos, undisturbed: Run) -> None:
    disturbed, expected = chaos.run.metrics(), undisturbed.metrics()
    assert [line["step"] for line in disturbed] == list(range(chaos.run.done() + 1))
    assert disturbed == expected[: len(disturbed)]


def test_no_episode_failed_that_would_not_have(chaos: Chaos) -> None:
    lines = read_lines(chaos.run.folder / "metrics.jsonl")
    assert [line["step"] for line in lines if line.get("train/episodes_error", 0)] == []
