"""`empg train` at a lag of one version under faults of every kind: its accounts balance, nothing is trained on
twice, no error is taken for a failure, and its log replays what it learnt to the bit."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from megatron_empg.common.jsonl import read_lines
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.run.folder import RunFolder
from tests.end_to_end.chaos import Chaos, Fault, Moment
from tests.end_to_end.chaos_scene import STEPS, chaos_scene
from tests.end_to_end.chaos_search import UnreliableSearch
from tests.end_to_end.disturbed_run import Disturbed, Run
from tests.end_to_end.killed_runs import learnt

pytestmark = pytest.mark.slow

GROUPS, GROUP_SIZE = 4, 4
BACK_WITHIN = 60.0
"""Seconds, on a machine that does nothing else."""
ENVIRONMENT_TIMEOUT = 30.0
"""Seconds until a worker that hangs is ended, with its episode."""
AT_A_LAG = {
    "limits.environment_timeout": ENVIRONMENT_TIMEOUT,
    "rollout.groups": GROUPS,
    "rollout.group_size": GROUP_SIZE,
    "rollout.max_lag": 1,
    "rollout.keep_all_batches": "true",
    "algorithm.name": "grpo",  # which keeps every group, and has no rounds
    "algorithm.max_generation_rounds": None,
    "algorithm.correction": "tis",
}
PLACES = ("trained", "dropped_equal", "dropped_errors", "dropped_stale", "in_flight", "ready")


def faults_of(chaos: Chaos, search: UnreliableSearch) -> Iterator[tuple[str, Moment, Fault]]:
    """Name, moment and fault of each, in an order in which alike ones are apart."""
    playing, kill, stop = chaos.playing, signal.SIGKILL, signal.SIGSTOP
    yield "engine killed as it plays", playing, chaos.server_gets("engine", kill)
    yield "disk full at a checkpoint", chaos.in_phase("checkpoint"), chaos.disk_is_full
    yield "search answers 500", playing, search.fails("500", chaos)
    yield "engine's core killed as it plays", playing, chaos.server_gets("engine", kill, core=True)
    yield "worker of the environment killed", playing, chaos.worker_gets(kill)
    yield "service killed in an update", chaos.in_phase("update"), chaos.server_gets("driver", kill)
    yield "connections of an engine cut", playing, chaos.connections_cut("engine")
    yield "engine killed in a sync", chaos.syncing, chaos.server_gets("engine", kill)
    yield "worker of the environment frozen", playing, worker_freezes(chaos)
    yield "rank killed in update", chaos.in_phase("update"), chaos.trainer_gets("rank", kill)
    yield "search killed", playing, search.killed(chaos)
    yield "engine frozen as it plays", playing, chaos.server_gets("engine", stop)
    yield "slow network as it plays", playing, chaos.network_is_slow
    yield "rank killed in sync", chaos.in_phase("sync"), chaos.trainer_gets("rank", kill)
    yield "service frozen as it plays", playing, chaos.server_gets("driver", stop)
    yield "connections of the service cut", playing, chaos.connections_cut("driver")
    yield "torchrun killed in rollout", chaos.in_phase("rollout"), chaos.trainer_gets("torchrun", kill)


def worker_freezes(chaos: Chaos) -> Fault:
    """It is over when its episode has ended as an error, and a step has counted it."""

    def fault() -> Callable[[], bool]:
        stepped = chaos.worker_gets(signal.SIGSTOP)()
        return lambda: stepped() and errors(chaos) > 0

    return fault


def errors(chaos: Chaos) -> float:
    """Episodes that ended in one so far."""
    return sum(line.get("train/episodes_error", 0) for line in read_lines(chaos.run.folder / "metrics.jsonl"))


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    with chaos_scene(tmp_path_factory.mktemp("chaos")) as scene:
        found = Chaos(scene.start(scene.disk / "disturbed", AT_A_LAG))
        found.do_all(faults_of(found, scene.search))
        yield found


@pytest.fixture(scope="module")
def replayed(chaos: Chaos, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained on the disturbed run's batches, with nothing that disturbs it."""
    folder = tmp_path_factory.mktemp("replayed") / "run"
    disturbed = chaos.run
    assert isinstance(disturbed, Run)
    overrides = disturbed.more | {
        "rollout.replay_from": disturbed.folder,
        "rollout.keep_all_batches": None,
        "run.checkpoint_every": STEPS,
    }
    return Run(folder, 2, disturbed.done(), overrides, disturbed.search_token).start().end()


def trained(run: Disturbed) -> list[dict[str, Any]]:
    """What each step came to, without evaluations: a run that a file ends has none behind its last step."""
    steps = []
    for line in learnt(run.folder):
        steps.append({key: value for key, value in line.items() if not key.startswith("eval/")})
    return steps


def batches(chaos: Chaos) -> list[Batch]:
    """What the run's steps were trained on."""
    run = RunFolder(chaos.run.folder)
    assert run.batch_steps() == list(range(1, chaos.run.done() + 1))
    return [Batch.from_bytes(run.batch(step).read_bytes()) for step in run.batch_steps()]


def test_each_fault_is_over_within_a_minute_of_idle_cores(chaos: Chaos) -> None:
    late = chaos.slower_than(BACK_WITHIN)
    assert not late, late


def test_each_step_was_logged_once(chaos: Chaos) -> None:
    logged = [line["step"] for line in read_lines(chaos.run.folder / "metrics.jsonl")]
    assert logged == list(range(chaos.run.done() + 1))


def test_the_accounts_balance_and_no_group_is_trained_on_twice(chaos: Chaos) -> None:
    trained: list[int] = []
    for step, batch in enumerate(batches(chaos), 1):
        account, metrics = batch.account, batch.metrics
        assert account is not None
        assert account.batches == step
        trained += account.numbers
        assert account.trained == len(trained)
        assert metrics["stream/started"] == sum(metrics[f"stream/{place}"] for place in PLACES)
    assert len(set(trained)) == len(trained)


def test_no_token_is_older_than_the_lag(chaos: Chaos) -> None:
    for version, batch in enumerate(batches(chaos)):
        lags = version - batch.token_versions
        assert 0 <= int(lags.min()) <= int(lags.max()) <= 1


def test_episodes_that_an_error_ended_are_counted_and_none_is_trained_on(chaos: Chaos) -> None:
    """A worker that freezes costs its episode. Where no group was dropped, all others are there."""
    failures, dropped = 0, 0
    for batch in batches(chaos):
        assert batch.account is not None
        before, dropped = dropped, sum(batch.account.dropped.values())
        if dropped > before:
            continue
        failed = int(batch.metrics["train/episodes_error"])
        assert batch.episodes == len(batch.account.numbers) * GROUP_SIZE - failed
        failures += failed
    assert failures > 0


def test_its_log_replays_what_it_learnt_to_the_bit(chaos: Chaos, replayed: Run) -> None:
    assert trained(replayed) == trained(chaos.run)
