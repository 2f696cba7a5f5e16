"""A job under fault after fault, most while something is in flight: every step is the undisturbed job's, number
for number, each part comes back within a minute, and a rank that hangs costs one requeue."""

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.chaos import Chaos, Fault, Moment
from tests.end_to_end.disturbed_run import Disturbed
from tests.end_to_end.killed_runs import kind_of
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import ENDED, Run, patience

pytestmark = pytest.mark.slow

BACK_WITHIN = 60.0
"""Seconds, on a machine that does nothing else."""
SILENCE = 20
REQUEUED_WITHIN = 180.0
"""Seconds until a step of the job that a hanging rank had requeued: silence, Slurm's requeueing, a whole start."""
SECONDS = 900
OVERRIDES = {
    "run.steps": 1000, "run.checkpoint_every": 1, "engines.silence_timeout": SILENCE, "limits.sync_timeout": 60,
    "limits.min_groups": 1,
}  # fmt: skip
MODULES = {
    "engine": "megatron_empg.rollout.server",
    "driver": "megatron_empg.launch.rollout_service",
    "search": "megatron_empg.environments.deep_search.search_service",
    "torchrun": "megatron_empg.launch.torchrun",
    "rank": "megatron_empg.trainer.worker",
}


@dataclass
class Job(Disturbed):
    """The processes of a job, on whatever simulated node they are."""

    job: Run

    @property
    def folder(self) -> Path:  # type: ignore[override]
        return self.job.folder

    @property
    def output(self) -> str:
        return self.job.output

    def until(self, seen: Callable[[], bool], what: str) -> None:
        deadline, looked = time.monotonic() + patience(SECONDS), time.monotonic()
        while not seen():
            assert time.monotonic() < deadline, f"{what}: not seen\n{self.output}"
            if time.monotonic() > looked + 2:
                state, looked = self.job.cluster.job(self.job.number).state, time.monotonic()
                assert state not in ENDED, f"{what}: not seen; the job is {state}:\n{self.output}"
            time.sleep(0.05)

    def processes(self, kind: str) -> list[psutil.Process]:
        found = []
        for pid, _, _ in self.job.processes(MODULES[kind]):
            try:
                process = psutil.Process(pid)
                if kind_of(process) == kind:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def requeued(self) -> bool:
        return self.job.cluster.job(self.job.number).restarts > 0

    def give_up(self) -> None:
        self.job.cluster.run("scancel", str(self.job.number), check=False)

    def end(self) -> None:
        ended = self.job.end()
        assert (ended.state, ended.exit_code) == ("COMPLETED", 0)


def started(cluster: Cluster, scratch: Path) -> Job:
    variables = {"EMPG_SILENCE_SECONDS": str(SILENCE)}
    job = Job(Run(cluster, scratch, overrides=OVERRIDES, variables=variables))
    job.job.submit()
    return job


def faults_of(chaos: Chaos) -> Iterator[tuple[str, Moment, Fault]]:
    """Name, moment and fault of each, in an order in which alike ones are apart."""
    playing, syncing = chaos.playing, chaos.syncing
    kill, stop = signal.SIGKILL, signal.SIGSTOP
    for number in range(1, 4):
        yield f"engine killed as it plays, {number}", playing, chaos.server_gets("engine", kill)
        yield f"search killed, {number}", playing, chaos.server_gets("search", kill)
        yield f"engine's core killed as it plays, {number}", playing, chaos.server_gets("engine", kill, core=True)
        yield f"connections of an engine cut, {number}", playing, chaos.connections_cut("engine")
        yield f"service killed as it plays, {number}", playing, chaos.server_gets("driver", kill)
        yield f"engine killed in a sync, {number}", syncing, chaos.server_gets("engine", kill)
        yield f"connections of the search cut, {number}", playing, chaos.connections_cut("search")
    for phase in ("rollout", "score", "update", "sync", "checkpoint"):
        yield f"rank killed in {phase}", chaos.in_phase(phase), chaos.trainer_gets("rank", kill)
    yield "engine frozen as it plays", playing, chaos.server_gets("engine", stop)
    yield "engine stalls as it plays", playing, chaos.stalls("engine")
    yield "search frozen", playing, chaos.server_gets("search", stop)
    yield "search stalls", playing, chaos.stalls("search")
    yield "service frozen as it plays", playing, chaos.server_gets("driver", stop)
    yield "torchrun killed in update", chaos.in_phase("update"), chaos.trainer_gets("torchrun", kill)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="empg_slurm_", dir="/tmp"))
    with Cluster(folder, nodes=3) as found:
        yield found
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def chaos(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Chaos:
    found = Chaos(started(cluster, tmp_path_factory.mktemp("chaos")))
    try:
        for name, when, fault in faults_of(found):
            found.do(name, when, fault)
        found.run.after_a_step()
    except BaseException:
        found.run.give_up()
        raise
    return found


@pytest.fixture(scope="module")
def hanging(chaos: Chaos) -> float:
    """Seconds until the job made a step after one of its ranks had stopped; it is ended then."""
    over = chaos.another_start()
    began = time.monotonic()
    try:
        chaos.run.processes("rank")[-1].send_signal(signal.SIGSTOP)
        chaos.run.until(over, "a step of the requeued job")
        seconds = time.monotonic() - began
        chaos.run.stop()
    finally:
        chaos.run.give_up()
    print(f"\nrank stopped: {seconds:.1f} s")
    return seconds


@pytest.fixture(scope="module")
def undisturbed(chaos: Chaos, hanging: float, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """As many steps as the disturbed one made, or one more."""
    job = started(cluster, tmp_path_factory.mktemp("undisturbed"))
    try:
        job.until(lambda: job.done() >= chaos.run.done(), "as many steps")
        job.stop()
    finally:
        job.give_up()
    return job


def test_thirty_faults_are_over_within_a_minute_of_idle_cores_each(chaos: Chaos) -> None:
    assert len(chaos.faults) >= 30
    late = chaos.slower_than(BACK_WITHIN)
    assert not late, late


def test_most_faults_came_while_something_was_in_flight(chaos: Chaos) -> None:
    assert len([fault for fault in chaos.faults if fault.in_flight]) >= 20


def test_a_rank_that_hangs_has_the_job_requeued(chaos: Chaos, hanging: float) -> None:
    assert isinstance(chaos.run, Job)
    assert chaos.run.requeued()
    assert hanging < REQUEUED_WITHIN * chaos.load


def test_every_step_is_the_undisturbed_jobs(chaos: Chaos, undisturbed: Job) -> None:
    disturbed, expected = chaos.run.metrics(), undisturbed.metrics()
    assert [line["step"] for line in disturbed] == list(range(chaos.run.done() + 1))
    assert disturbed == expected[: len(disturbed)]
