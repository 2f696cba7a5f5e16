"""Runs that lose a node, meet the time limit, hang or break: each resumes, or ends saying what failed."""

import random
import re
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest

from megatron_empg.launch.ports import Ports
from megatron_empg.launch.restart import used_up
from megatron_empg.launch.starts import read_starts
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import STAND_INS, Run, assert_inside, patience, ranks, signal_all

STEPS = 6
LONG = {"run.steps": 1000, "run.checkpoint_every": 1000}
"""Until a file STOP ends it."""
REFERENCE = 40
"""Steps that the undisturbed runs make."""


@pytest.fixture(scope="module")
def four_nodes():
    folder = Path(tempfile.mkdtemp(prefix="empg_slurm_", dir="/tmp"))
    with Cluster(folder, nodes=4) as found:
        yield found
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def undisturbed(four_nodes, tmp_path_factory):
    """Two runs that nothing happens to."""
    runs = []
    for number in (1, 2):
        run = Run(four_nodes, tmp_path_factory.mktemp(f"undisturbed{number}"), overrides=LONG)
        run.submit()
        run.wait_for_step(REFERENCE)
        (run.folder / "STOP").touch()
        assert run.end().exit_code == 0
        runs.append(run)
    return runs


@pytest.fixture
def run(four_nodes, tmp_path):
    four_nodes.start_dead_nodes()
    return Run(four_nodes, tmp_path, overrides={"run.steps": STEPS})


def assert_whole(run: Run, restarts: int, undisturbed: list[Run]) -> None:
    job = run.end()
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", 0, restarts)
    assert run.steps() == list(range(STEPS + 1)), "no step twice, none left out"
    assert assert_inside(run, undisturbed) == STEPS
    assert (run.folder / "policy").exists()


@pytest.mark.slow
@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_dead_node_is_left_behind(run, four_nodes, undisturbed, node):
    """The first has the batch script too: there the guard requeues the job."""
    run.submit()
    run.wait_for_step(2)
    four_nodes.kill_node(node)
    run.wait_for("another start", lambda: four_nodes.job(run.number).restarts == 1)
    assert_whole(run, 1, undisturbed)
    if node == "node2":
        assert "lost node2" in run.output
    left = [name for name in ("node1", "node2", "node3", "node4") if name != node]
    assert run.output.count("trainer on {} {}; rollout on {}".format(*left)) == 1


@pytest.mark.slow
def test_a_spare_node_takes_over_without_requeueing(run, four_nodes, undisturbed):
    run.options = ("--nodes=4", *run.options[1:])
    run.submit()
    run.wait_for_step(2)
    four_nodes.kill_node("node3")
    assert_whole(run, 0, undisturbed)
    assert "going on without node3" in run.output
    assert "trainer on node1 node2; rollout on node4" in run.output


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [3, 4])
def test_a_node_whose_gpu_fails_is_left_out(run, undisturbed, tmp_path, nodes):
    """With a spare at once, else as a new start that Slurm keeps off the node. NVML is a stand-in."""
    xids = tmp_path / "xids"
    xids.mkdir()
    run.variables = {"PYTHONPATH": str(STAND_INS / "nvml"), "EMPG_TEST_XIDS": str(xids)}
    run.options = (f"--nodes={nodes}", *run.options[1:])
    run.submit()
    run.wait_for_step(1)
    (xids / "node2").write_text("31\n")
    run.wait_for_step(2)
    (xids / "node2").write_text("31\n79\n")
    assert_whole(run, 4 - nodes, undisturbed)
    assert "watchdog: unfit: GPU 0 of node2: Xid 79" in run.output
    assert "trainer on node1 node3; rollout on node4" in run.output
    (log,) = run.folder.glob("logs/*.1/watchdog.node1.*.log")
    assert "watchdog: GPU 0 of node2: Xid 31\n" in log.read_text()


@pytest.mark.slow
def test_a_time_limit_shorter_than_the_run_makes_a_chain(run, undisturbed):
    run.options = ("--nodes=3", "--gpus-per-node=1", "--time=3", "--signal=B:USR1@60")
    run.overrides = LONG
    run.submit()
    run.wait_for("a second start", lambda: run.cluster.job(run.number).restarts == 1)
    first = run.steps()[-1]
    run.wait_for_step(first + 2)
    (run.folder / "STOP").touch()  # a thousand steps would be a long chain
    job = run.end()
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", 0, 1)
    assert run.starts() == [0, first]
    assert run.steps() == list(range(run.steps()[-1] + 1)), "no step twice, none left out"
    assert assert_inside(run, undisturbed) > first


@pytest.mark.slow
def test_a_stopped_rank_is_named_and_the_run_resumes(run, undisturbed):
    run.variables = {"EMPG_SILENCE_SECONDS": "20"}
    run.submit()
    run.wait_for_step(2)
    (second,) = [p for p in run.processes("megatron_empg.trainer.worker") if p[1].get("RANK") == "1"]
    signal_all([second], signal.SIGSTOP)
    stopped = time.monotonic()
    run.wait_for("the requeue", lambda: "requeueing" in run.output, timeout=120)
    assert time.monotonic() - stopped < patience(100)
    assert f"watchdog: hanging: rank 1 on node2 (pid {second[0]})" in run.output
    assert "hanging: rank 0" not in run.output
    stacks = (run.folder / "flight_recorder/stacks_rank_0.txt").read_text()
    assert "distributed" in stacks, "rank 0 was waiting in a collective"
    assert "gloo:" in (run.folder / "flight_recorder/collectives_rank_0.json").read_text()
    assert_whole(run, 1, undisturbed)


PROCESSES = {
    "engines": lambda run: run.processes("megatron_empg.rollout.server"),
    "driver": lambda run: run.processes("megatron_empg.launch.rollout_service"),
    "search": lambda run: run.processes("megatron_empg.environments.deep_search.search_service"),
    "trainer": ranks,
    "torchrun": lambda run: run.processes("megatron_empg.launch.torchrun"),
}
"""Processes of each kind."""


ALONE = {"engines": "engine_1", "driver": "driver", "search": "search"}
"""The part that is started again alone when the last process of a kind is killed."""


def kill_one(run: Run, name: str) -> None:
    """Kill -9 a process of a kind, once the run has a new checkpoint; wait until it or the run has begun anew."""
    step, starts = run.steps()[-1], len(run.starts())
    run.wait_for_step(step + 2)
    signal_all(PROCESSES[name](run)[-1:], signal.SIGKILL)
    if name in ALONE:
        said = f"{ALONE[name]} was ended by SIGKILL; it alone is started again"
        run.wait_for(f"{name} started again", lambda: said in run.output)
    else:
        run.wait_for(f"a start after {name} was killed", lambda: len(run.starts()) > starts)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ALONE))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_serves_is_started_again_alone_when_it_is_killed_or_frozen(run, undisturbed, name, number):
    run.overrides |= {"engines.silence_timeout": 20}
    run.submit()
    run.wait_for_step(2)
    trainers = {pid for pid, *_ in ranks(run)}
    signal_all(PROCESSES[name](run)[-1:], number)
    how = (
        "was ended by SIGKILL"
        if number is signal.SIGKILL
        else r"answers no more \(no answer to /health for \d+ s\)"
    )
    said = rf"{ALONE[name]} {how}; it alone is started again"
    run.wait_for(f"{name} started again", lambda: re.search(said, run.output) is not None)
    assert {pid for pid, *_ in ranks(run)} == trainers, "the trainer goes on"
    assert_whole(run, 0, undisturbed)
    assert len(run.starts()) == 1


@pytest.mark.slow
def test_tasks_that_outlive_their_srun_are_ended_before_their_part_is_started_again(run):
    """They hold the port, of which their successor would fail."""

    def tasks() -> set[int]:
        engines = run.processes("megatron_empg.rollout.server")
        return {pid for pid, variables, _ in engines if variables["EMPG_LOG"].endswith("/engine_1")}

    run.overrides = LONG
    run.submit()
    run.wait_for_step(2)
    left = tasks()
    assert left
    signal_all(run.sruns("engine_1"), signal.SIGKILL)
    said = "engine_1 was ended by SIGKILL; it alone is started again"
    run.wait_for("engine_1 started again", lambda: said in run.output)
    run.wait_for("the end of its first tasks", lambda: not left & tasks(), timeout=40)
    run.wait_for_step(run.steps()[-1] + 2)
    (run.folder / "STOP").touch()
    job = run.end()
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", 0, 0)
    assert run.output.count("it alone is started again") == 1
    assert run.steps() == list(range(run.steps()[-1] + 1))
    assert len(run.starts()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trainer"])
def test_a_run_goes_on_in_the_same_job_when_a_process_of_it_is_killed(run, undisturbed, name):
    run.submit()
    run.wait_for_step(2)  # by then the checkpoint of step 1 is whole
    signal_all(PROCESSES[name](run)[-1:], signal.SIGKILL)
    killed = time.monotonic()
    run.wait_for("another start", lambda: len(run.starts()) == 2)
    assert time.monotonic() - killed < patience(60)
    assert_whole(run, 0, undisturbed)
    assert f"{name} was ended by SIGKILL; going on from step" in run.output
    assert run.starts()[1] >= 1, "from the newest checkpoint"


@pytest.mark.slow
def test_on_one_node_a_run_outlives_the_death_of_each_kind_of_process(run, undisturbed):
    """By slurm/train.sh: trainer ranks and engines share the node."""
    run.script, run.first_words, run.options = "slurm/train.sh", ("recipes/quickstart.yaml",), ("--nodes=1",)
    run.variables = dict.fromkeys(("EMPG_RECIPE", "EMPG_TRAINER_NODES", "EMPG_ROLLOUT_NODES"), "")
    run.overrides = LONG | {"run.checkpoint_every": 1}
    run.submit()
    run.wait_for_step(0)
    for name in PROCESSES:
        kill_one(run, name)
    run.wait_for_step(run.starts()[-1] + 1)
    (run.folder / "STOP").touch()
    job = run.end()
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", 0, 0)
    assert len(run.starts()) == 1 + len(PROCESSES) - len(ALONE)
    assert "rollout on node1 beside it, from GPU 2 on" in run.output
    assert run.steps() == list(range(run.steps()[-1] + 1)), "no step twice, none left out"
    assert assert_inside(run, undisturbed) > 2 * len(PROCESSES)


@pytest.mark.slow
def test_a_job_that_would_fail_again_ends_at_once(run):
    """An engine whose cache holds no episode says so before it was ever healthy."""
    run.overrides |= {"engines.kv_cache_gib": 1e-6}
    run.submit()
    run.wait_for("the start", run.starts)
    started = time.monotonic()
    job = run.end()
    assert time.monotonic() - started < patience(120)
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 14, 0)
    assert "error (engines)" in run.output
    assert run.starts() == [0], "it was not tried again"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "code", "port"),
    [
        ("search", 13, lambda ports: ports.service(0)),
        ("driver", 15, lambda ports: ports.driver),
    ],
)
def test_a_server_whose_port_is_taken_ends_the_job_with_its_code(run, word, code, port):
    ports = Ports(random.randrange(10_000, 32_000, 128))
    run.variables = {"EMPG_BASE_PORT": str(ports.base)}
    with socket.socket() as other:
        other.bind(("0.0.0.0", port(ports)))  # of every simulated node, as they share this machine
        run.submit()
        job = run.end()
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", code, 0)
    assert f"error ({word})" in run.output
    assert run.starts() == [0], "it was not tried again"


@pytest.mark.slow
def test_a_trainer_that_ends_by_its_own_error_ends_the_job_with_16(run):
    """Engines and actor never agree as closely as this."""
    run.overrides |= {"limits.logprob_gap": 1e-12}
    run.submit()
    job = run.end()
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 16, 0)
    assert "error (trainer): trainer ended by its own error" in run.output
    assert "limits.logprob_gap" in run.output, "the end of its log is shown"
    assert run.starts() == [0], "it was not tried again"


@pytest.mark.parametrize(
    ("starts", "most", "says"),
    [
        (["7 4"], 20, None),
        (["7 4", "7 4"], 20, None),
        (["7 4", "7 4", "7 4"], 20, "two restarts brought no checkpoint after step 4"),
        (["6 4", "6 4", "7 4"], 20, None),
        (["7 2", "7 4", "7 4"], 20, None),
        (["7 0", "7 2", "7 4"], 2, "restarted 2 times (EMPG_MAX_RESTARTS)"),
        (["7 4"], 0, "restarted 0 times"),
    ],
)
def test_when_a_job_gives_up(tmp_path, starts, most, says):
    (tmp_path / "starts").write_text("".join(f"{line}\n" for line in starts))
    why = used_up(read_starts(tmp_path, "7"), 4, most)
    assert (why == "") == (says is None), why
    assert (says or "") in why
