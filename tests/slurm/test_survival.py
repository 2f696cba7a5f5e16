"""Runs that lose a node, meet the time limit, hang or break: each resumes, or ends saying what failed."""

import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from cluster import Cluster
from jobs import ROOT, Run, signal_all

STEPS = 6


@pytest.fixture(scope="module")
def four_nodes():
    folder = Path(tempfile.mkdtemp(prefix="empg_slurm_", dir="/tmp"))
    with Cluster(folder, nodes=4) as found:
        yield found
    shutil.rmtree(folder)


@pytest.fixture
def run(four_nodes, tmp_path):
    four_nodes.start_dead_nodes()
    return Run(four_nodes, tmp_path, overrides={"run.steps": STEPS})


def assert_whole(run: Run, restarts: int) -> None:
    job = run.end()
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", 0, restarts)
    last = int(run.metrics[-1]["step"])
    assert run.steps() == list(range(last + 1)), "no step twice, none left out"
    assert (run.folder / "policy").exists()


@pytest.mark.slow
def test_a_dead_node_is_left_behind(run, four_nodes):
    run.submit()
    run.wait_for_step(2)
    four_nodes.kill_node("node2")
    run.wait_for("another start", lambda: four_nodes.job(run.number).restarts == 1)
    assert_whole(run, restarts=1)
    assert "lost node2" in run.output
    assert run.output.count("trainer on node1 node3; rollout on node4") == 1


@pytest.mark.slow
def test_a_spare_node_takes_over_without_requeueing(run, four_nodes):
    run.options = ("--nodes=4", *run.options[1:])
    run.submit()
    run.wait_for_step(2)
    four_nodes.kill_node("node3")
    assert_whole(run, restarts=0)
    assert "going on without it" in run.output
    assert "trainer on node1 node2; rollout on node4" in run.output


@pytest.mark.slow
def test_a_time_limit_shorter_than_the_run_makes_a_chain(run):
    run.options = ("--nodes=3", "--gpus-per-node=1", "--time=3", "--signal=B:USR1@60")
    run.overrides = {"run.steps": 1000, "run.checkpoint_every": 1000}
    run.submit()
    run.wait_for("a second start", lambda: run.cluster.job(run.number).restarts == 1)
    first = run.steps()[-1]
    run.wait_for_step(first + 1)
    (run.folder / "STOP").touch()  # a thousand steps would be a long chain
    job = run.end()
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", 0, 1)
    starts = [int(line.split()[1]) for line in (run.folder / "starts").read_text().splitlines()]
    assert starts == [0, first]
    assert run.steps() == list(range(run.steps()[-1] + 1)), "no step twice, none left out"


@pytest.mark.slow
def test_a_stopped_rank_is_named_and_the_run_resumes(run):
    run.variables = {"EMPG_SILENCE_SECONDS": "20"}
    run.submit()
    run.wait_for_step(2)
    (second,) = [p for p in run.processes("megatron_empg.trainer.worker") if p[1].get("RANK") == "1"]
    signal_all([second], signal.SIGSTOP)
    stopped = time.monotonic()
    run.wait_for("the requeue", lambda: "requeueing" in run.output, timeout=120)
    assert time.monotonic() - stopped < 100
    (log,) = run.folder.glob("logs/*.1/watchdog.*.log")
    assert f"rank 1 on node2 (pid {second[0]})" in log.read_text()
    assert "rank 0" not in log.read_text()
    stacks = (run.folder / "flight_recorder/stacks_rank_0.txt").read_text()
    assert "distributed" in stacks, "rank 0 was waiting in a collective"
    assert "gloo:" in (run.folder / "flight_recorder/collectives_rank_0.json").read_text()
    assert_whole(run, restarts=1)


@pytest.mark.slow
def test_a_dead_engine_ends_the_job_within_a_minute(run):
    run.submit()
    run.wait_for_step(1)
    signal_all(run.processes("megatron_empg.rollout.server")[:1], signal.SIGKILL)
    killed = time.monotonic()
    job = run.end(timeout=120)
    assert time.monotonic() - killed < 60
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 14, 0)
    assert "error (engines)" in run.output


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
