"""`empg train` under more than thirty faults, one after the other, most while something is in flight: every step
is the undisturbed run's, number for number, and on idle cores each fault is over within a minute."""

import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from megatron_empg.common.jsonl import read_lines
from tests.end_to_end.chaos import Chaos, Fault, Moment
from tests.end_to_end.chaos_scene import chaos_scene
from tests.end_to_end.chaos_search import UnreliableSearch
from tests.end_to_end.disturbed_run import Run

pytestmark = pytest.mark.slow

BACK_WITHIN = 60.0
"""Seconds, on a machine that does nothing else."""


@dataclass
class Both:
    """The disturbed run and the other."""

    chaos: Chaos
    undisturbed: Run


def faults_of(chaos: Chaos, search: UnreliableSearch) -> Iterator[tuple[str, Moment, Fault]]:
    """Name, moment and fault of each, in an order in which alike ones are apart."""
    playing, syncing = chaos.playing, chaos.syncing
    kill, stop = signal.SIGKILL, signal.SIGSTOP
    for number in range(1, 3):
        yield f"engine killed as it plays, {number}", playing, chaos.server_gets("engine", kill)
        yield f"connections of an engine cut, {number}", playing, chaos.connections_cut("engine")
        yield f"engine's core killed as it plays, {number}", playing, chaos.server_gets("engine", kill, core=True)
        yield f"search answers 500, {number}", playing, search.fails("500", chaos)
        yield f"service killed as it plays, {number}", playing, chaos.server_gets("driver", kill)
        yield f"engine killed in a sync, {number}", syncing, chaos.server_gets("engine", kill)
        yield f"worker of the environment killed, {number}", playing, chaos.worker_gets(kill)
    for phase in ("rollout", "score", "update", "sync", "checkpoint"):
        yield f"rank killed in {phase}", chaos.in_phase(phase), chaos.trainer_gets("rank", kill)
    for number in range(1, 3):
        yield f"engine frozen as it plays, {number}", playing, chaos.server_gets("engine", stop)
        yield f"search killed, {number}", playing, search.killed(chaos)
        yield f"engine stalls as it plays, {number}", playing, chaos.stalls("engine")
        yield f"search cuts its answers off, {number}", playing, search.fails("cut", chaos)
        yield f"slow network as it plays, {number}", playing, chaos.network_is_slow
        yield f"slow network in an update, {number}", chaos.in_phase("update"), chaos.network_is_slow
    yield "service frozen as it plays", playing, chaos.server_gets("driver", stop)
    yield "search answers late", playing, search.fails("late", chaos)
    yield "service stalls as it plays", playing, chaos.stalls("driver")
    yield "connections of the service cut", playing, chaos.connections_cut("driver")
    yield "torchrun killed in update", chaos.in_phase("update"), chaos.trainer_gets("torchrun", kill)
    yield "disk full at a checkpoint", chaos.in_phase("checkpoint"), chaos.disk_is_full


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with chaos_scene(tmp_path_factory.mktemp("chaos")) as scene:
        chaos = Chaos(scene.start(scene.disk / "disturbed", {}))
        chaos.do_all(faults_of(chaos, scene.search))
        undisturbed = scene.start(scene.folder / "undisturbed", {})
        undisturbed.until(lambda: undisturbed.done() >= chaos.run.done(), "as many steps")
        yield Both(chaos, undisturbed.stop())


def test_thirty_faults_are_over_within_a_minute_of_idle_cores_each(runs: Both) -> None:
    assert len(runs.chaos.faults) >= 30
    late = runs.chaos.slower_than(BACK_WITHIN)
    assert not late, late


def test_most_faults_came_while_something_was_in_flight(runs: Both) -> None:
    print(Counter(fault.phase for fault in runs.chaos.faults))
    assert len([fault for fault in runs.chaos.faults if fault.in_flight]) >= 20


def test_every_step_is_the_undisturbed_runs(runs: Both) -> None:
    disturbed, expected = runs.chaos.run.metrics(), runs.undisturbed.metrics()
    assert [line["step"] for line in disturbed] == list(range(runs.chaos.run.done() + 1))
    assert disturbed == expected[: len(disturbed)]


def test_no_episode_failed_that_would_not_have(runs: Both) -> None:
    lines = read_lines(runs.chaos.run.folder / "metrics.jsonl")
    assert [line["step"] for line in lines if line.get("train/episodes_error", 0)] == []
