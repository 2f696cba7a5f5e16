"""`empg train` whose engines and rollout service are killed and frozen one by one: the trainer goes on, each comes
back and is refitted alone, and what is trained is the same to the bit."""

import signal

import pytest

from megatron_empg.common.jsonl import read_lines
from tests.end_to_end.disturbed_run import Run, Server

pytestmark = pytest.mark.slow

STEPS = 16


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("healing") / "undisturbed", 2, STEPS).start().end()


@pytest.fixture(scope="module")
def single(undisturbed: Run) -> Run:
    """A run with one engine, which is killed, frozen, whose core is frozen, which is killed in a sync; then its
    service is killed."""
    run = Run(undisturbed.folder.parent / "single", 1, STEPS).start()
    try:
        run.after_a_step()
        run.disturb("killed while it plays", "engine", signal.SIGKILL, Server.generates)
        run.after_a_step()
        run.disturb("frozen while it plays", "engine", signal.SIGSTOP, Server.generates)
        run.after_a_step()
        run.disturb("core frozen while it plays", "engine", signal.SIGSTOP, Server.generates, Server.core)
        run.after_a_step()
        run.disturb("killed in a sync", "engine", signal.SIGKILL, Server.is_paused)
        run.after_a_step()
        engine = run.server("engine")
        run.disturb("service killed", "driver", signal.SIGKILL, lambda driver: engine.generates())
        run.after_a_step()
        return run.stop()
    finally:
        run.process.kill()


def test_the_trainer_waits_for_its_only_engine_and_its_service_whatever_becomes_of_them(single: Run) -> None:
    for fault, seconds in single.recovered.items():
        print(f"\n{fault}: back after {seconds:.1f} s", end="")
    print()
    assert len(single.starts()) == 1, "nothing else was started again"
    assert single.output.count("it alone is started again") == 5, single.output


def test_it_learns_the_same_to_the_bit(undisturbed: Run, single: Run) -> None:
    played = single.metrics()
    assert len(played) > 5
    assert [line["step"] for line in played] == list(range(len(played)))
    assert played == undisturbed.metrics()[: len(played)]
    assert read_lines(single.folder / "metrics.jsonl")[-1]["rollout/engine_failures"] == 0, "of a new service"


def test_episodes_of_an_engine_that_dies_go_on_on_the_other_one(undisturbed: Run) -> None:
    run = Run(undisturbed.folder.parent / "pair", 2, STEPS).start()
    try:
        run.after_a_step()
        run.disturb("one of two killed", "engine", signal.SIGKILL, Server.generates)
        run.after_a_step()
        run.after_a_step()
        run.stop()
    finally:
        run.process.kill()
    print(f"\none of two killed: back after {run.recovered['one of two killed']:.1f} s")
    assert len(run.starts()) == 1
    played = run.metrics()
    assert played == undisturbed.metrics()[: len(played)]
    last = read_lines(run.folder / "metrics.jsonl")[-1]
    assert last["rollout/episodes_moved"] > 0
    assert (last["rollout/engines_healthy"], last["rollout/engine_refits"]) == (2, 1)
