"""The suite over gloo: what it measures, and that planted and real faults are found, named and in time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_empg.launch.ports import free_port
from tests.support.suite_runs import TOOL, run_suite

SMALL = ["--max-bytes", "65536"]


def test_everything_on_two_nodes_of_two_ranks(tmp_path: Path) -> None:
    picture = tmp_path / "pairs.png"
    options = ["--layout", "tensor=2", "--max-bytes", str(2**20), "--heat-map", str(picture)]
    run = run_suite(tmp_path, 4, *options, ranks_per_node=2)
    found = run.findings
    assert run.codes == [0] * 4, run.printed
    assert (found["verdict"], found["faults"]) == ("PASS", [])
    assert found["groups"] == {"world": 4, "tensor": 2, "data": 2}
    assert found["correctness"]["wrong"] == []
    assert found["correctness"]["concurrent groups"] == ["tensor", "data"]
    assert {row["group"] for row in found["bandwidth"]} == {"world", "tensor", "data"}
    for row in found["bandwidth"]:
        assert row["algorithm_GB_per_s"] == pytest.approx(row["size"] / row["seconds"] / 1e9)
        if row["collective"] == "all_reduce":
            n = row["ranks"]
            assert row["bus_GB_per_s"] == pytest.approx(row["algorithm_GB_per_s"] * 2 * (n - 1) / n)
    # Inside nodes 0-1 and 2-3, along rails 0-2 and 1-3, each both ways.
    pairs = {(a, b) for a, b, value in found["pairs"] if value > 0}
    assert pairs == {(0, 1), (1, 0), (2, 3), (3, 2), (0, 2), (2, 0), (1, 3), (3, 1)}
    assert [row["rank"] for row in found["gpus"]] == [0, 1, 2, 3]
    assert {(row["sender"], row["receiver"]) for row in found["node_pairs"]} == {
        ("node0", "node1"),
        ("node1", "node0"),
    }
    assert [(row["transfer"], row["engines"]) for row in found["transfer"]] == [("broadcast", 2), ("shards", 2)]
    assert found["latency"]["median_us"] <= found["latency"]["p99_us"]
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_under_torchrun_with_the_groups_of_a_recipe(tmp_path: Path) -> None:
    report = tmp_path / "findings.json"
    recipe = TOOL.parents[1] / "recipes" / "quickstart.yaml"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "127.0.0.1",
    ]
    command += ["--master-port", str(free_port()), str(TOOL), "--backend", "gloo", "--recipe", str(recipe), *SMALL]
    command += ["--only", "correctness,late", "--stress-minutes", "0.02", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS: 2 ranks over gloo" in done.stdout
    assert '"rounds": ' in report.read_text()


def test_a_late_rank_is_named(tmp_path: Path) -> None:
    run = run_suite(tmp_path, 3, "--only", "late", "--inject", "delay", "1")
    assert run.codes == [1, 1, 1], run.printed
    (fault,) = run.findings["faults"]
    assert (fault["kind"], fault["ranks"]) == ("late", [1])
    assert "node1" in fault["what"]


@pytest.mark.parametrize("missing", [0, 2])
def test_a_rank_that_does_not_come_is_named_and_nobody_hangs(tmp_path: Path, missing: int) -> None:
    inject = ["--inject", "missing", str(missing)]
    run = run_suite(tmp_path, 3, "--only", "correctness", *SMALL, "--step-limit", "5", *inject, limit=90)
    assert run.codes == [3, 3, 3], run.printed
    assert run.findings["verdict"] == "FAIL"
    (fault,) = run.findings["faults"]
    assert (fault["kind"], fault["ranks"]) == ("missing", [missing])
    assert f"rank {missing} (node{missing}, local rank 0) did not come to it" in fault["what"]


def test_a_stopped_process_is_named(tmp_path: Path) -> None:
    """SIGSTOP in the middle of a run: no connection breaks, nothing answers."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys, threading, time\n"
        "def stop():\n"
        "    while 'megatron_empg.cluster.nccl_suite.stress' not in sys.modules:\n"  # imported when all have met
        "        time.sleep(0.05)\n"
        "    time.sleep(1)\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "threading.Thread(target=stop, daemon=True).start()\n"
    )
    environment = [{}, {"PYTHONPATH": str(tmp_path)}, {}]
    options = ["--only", "correctness", *SMALL, "--stress-minutes", "5", "--step-limit", "6"]
    run = run_suite(tmp_path, 3, *options, environment=environment)
    assert run.codes == [3, -9, 3], run.printed
    (fault,) = run.findings["faults"]
    assert (fault["kind"], fault["ranks"]) == ("missing", [1])
    assert "rank 1 (node1, local rank 0): process stopped or gone" in fault["what"]


def test_a_rank_that_never_starts_is_named(tmp_path: Path) -> None:
    options = ["--only", "correctness", *SMALL, "--start-limit", "4"]
    run = run_suite(tmp_path, 2, *options, environment=[{"SLURM_NTASKS": "3"}] * 2)
    assert run.codes == [2, 2], run.printed
    assert "rank 2 of 3 did not start within 4 s; ranks have come from node0, node1" in run.printed


def test_a_rank_that_starts_late_is_waited_for(tmp_path: Path) -> None:
    """Longer than a step may take, as where many ranks import torch from one file system."""
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(12)\n")
    options = ["--only", "correctness", *SMALL, "--step-limit", "8"]
    run = run_suite(tmp_path, 2, *options, environment=[{}, {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}])
    assert run.codes == [0, 0], run.printed


def test_the_time_limit_ends_it(tmp_path: Path) -> None:
    options = ["--only", "correctness", *SMALL, "--stress-minutes", "5", "--time-limit", "8"]
    run = run_suite(tmp_path, 2, *options)
    assert run.codes == [3, 3], run.printed
    (fault,) = run.findings["faults"]
    assert (fault["kind"], fault["ranks"]) == ("error", [])
    assert "out of time" in fault["what"]
