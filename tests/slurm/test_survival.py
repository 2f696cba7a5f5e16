"""Runs that lose a node, meet the time limit, hang or break: each resumes, or ends saying what failed."""

import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from cluster import Cluster
from jobs import ROOT, STAND_INS, Run, assert_inside, signal_all

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
    starts = [int(line.split()[1]) for line in (run.folder / "starts").read_text().splitlines()]
    assert starts == [0, first]
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
    assert time.monotonic() - stopped < 100
    assert f"watchdog: hanging: rank 1 on node2 (pid {second[0]})" in run.output
    assert "hanging: rank 0" not in run.output
    stacks = (run.folder / "flight_recorder/stacks_rank_0.txt").read_text()
    assert "distributed" in stacks, "rank 0 was waiting in a collective"
    assert "gloo:" in (run.folder / "flight_recorder/collectives_rank_0.json").read_text()
    assert_whole(run, 1, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "code", "step"),
    [
        ("megatron_empg.rollout.server", 14, "engines"),
        ("megatron_empg.launch.rollout_service", 15, "driver"),
        ("megatron_empg.trainer.worker", 16, "trainer"),
        ("megatron_empg.environments.deep_search.search_service", 13, "search"),
    ],
)
def test_a_dead_process_ends_the_job_within_a_minute(run, module, code, step):
    run.submit()
    run.wait_for_step(1)
    signal_all(run.processes(module)[-1:], signal.SIGKILL)
    killed = time.monotonic()
    job = run.end(timeout=120)
    assert time.monotonic() - killed < 60
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", code, 0)
    assert f"error ({step})" in run.output


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
    script = f'EMPG_HOME=.; source slurm/run.sh; ask() {{ :; }}; run_folder="{tmp_path}" checkpoint=4; may_restart'
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT,
        env={"SLURM_JOB_ID": "7", "EMPG_MAX_RESTARTS": str(most), "PATH": "/bin"},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == (says is None), done.stdout + done.stderr
    assert (says or "") in done.stdout
