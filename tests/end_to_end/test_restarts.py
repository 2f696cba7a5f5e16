"""`empg train` whose processes are killed in turn: an engine or the rollout service comes back alone, a killed
trainer starts everything again, and what is learnt is the same to the bit."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.common.jsonl import read_lines
from megatron_empg.run.metric_names import by_clock
from tests.end_to_end.run_processes import processes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ALONE = ("engine", "engine core", "driver")
"""Kinds of processes that are started again alone."""
TRAINER = ("torchrun", "rank")
"""Those with which everything is started again."""
VICTIMS = (*ALONE, *TRAINER)
STEPS = 3 + 3 * len(VICTIMS)
SECONDS = 900
"""How long a run may take on a busy machine."""
OF_FAULTS = re.compile(r"rollout/(engine_|engines_|episodes_moved)")
"""Metrics that tell what befell the engines: they must differ."""


def start(folder: Path) -> "subprocess.Popen[str]":
    overrides = {
        "run.folder": folder, "run.steps": STEPS, "run.checkpoint_every": 1, "algorithm.max_generation_rounds": 1,
        "rollout.groups": 4, "rollout.group_size": 4, "engines.kv_cache_gib": 0.125, "evaluation.questions": 8,
        "evaluation.greedy": "false", "limits.min_groups": 1,
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in overrides.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_empg.cli", "train", "recipes/quickstart.yaml", *words],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip


def end(process: "subprocess.Popen[str]") -> str:
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return output


def starts(folder: Path) -> list[int]:
    """The checkpoint that each start went on from."""
    lines = (folder / "starts").read_text(encoding="utf-8").splitlines()
    return [int(line.split()[1]) for line in lines]


def newest_checkpoint(folder: Path) -> int:
    return max([int(path.name[5:]) for path in folder.glob("checkpoints/step_??????")], default=0)


def wait_for_a_whole_step(process: "subprocess.Popen[str]", folder: Path) -> None:
    """Until a step that has begun since now is logged and saved, for which every process of the run is needed."""
    after = newest_checkpoint(folder) + 1
    deadline = time.monotonic() + SECONDS
    while True:
        logged = any(line["step"] > after for line in read_lines(folder / "metrics.jsonl"))
        if logged and newest_checkpoint(folder) > after:
            return
        assert process.poll() is None, end(process)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill(process: "subprocess.Popen[str]", kind: str) -> None:
    """Kill the run's process of that kind, and wait until another one is in its place."""
    before = processes(process.pid, kind)
    assert before, f"no process of the run is {kind}"
    before[0].send_signal(signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while not set(processes(process.pid, kind)) - set(before):
        assert process.poll() is None, end(process)
        assert time.monotonic() < deadline, f"{kind} was killed and not started again"
        time.sleep(0.1)


def learnt(folder: Path) -> list[dict[str, Any]]:
    """What two runs that learn the same have in common."""
    return [
        {key: value for key, value in line.items() if not by_clock(key) and not OF_FAULTS.match(key)}
        for line in read_lines(folder / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """An undisturbed run, one each of whose kinds of process was killed once, and what that one printed."""
    scratch = tmp_path_factory.mktemp("restarts")
    undisturbed, disturbed = scratch / "undisturbed", scratch / "disturbed"
    process = start(undisturbed)
    output = end(process)
    assert process.returncode == 0, output

    process = start(disturbed)
    try:
        for kind in VICTIMS:
            wait_for_a_whole_step(process, disturbed)
            before = len(starts(disturbed))
            kill(process, kind)
            assert len(starts(disturbed)) == before + (kind in TRAINER), kind
    except BaseException:
        process.kill()
        raise
    output = end(process)
    assert process.returncode == 0, output
    return undisturbed, disturbed, output


def test_an_engine_or_the_service_that_is_killed_is_started_again_alone(runs: tuple[Path, Path, str]) -> None:
    _, _, output = runs
    told = [line for line in output.splitlines() if "; it alone is started again" in line]
    assert [line.split()[0] for line in told] == ["engine_0", "engine_0", "driver"], output


def test_a_trainer_that_is_killed_starts_all_again_from_the_newest_checkpoint(
    runs: tuple[Path, Path, str],
) -> None:
    _, disturbed, output = runs
    assert len(starts(disturbed)) == 1 + len(TRAINER)
    assert starts(disturbed) == sorted(set(starts(disturbed))), "each from a newer checkpoint"
    told = [line for line in output.splitlines() if "; going on from step" in line]
    assert [line.split()[0] for line in told] == ["trainer"] * len(TRAINER), output


def test_it_learns_the_same_to_the_bit(runs: tuple[Path, Path, str]) -> None:
    undisturbed, disturbed, _ = runs
    assert [line["step"] for line in read_lines(disturbed / "metrics.jsonl")] == list(range(STEPS + 1))
    assert learnt(disturbed) == learnt(undisturbed)


def test_it_exports_the_same_policy(runs: tuple[Path, Path, str]) -> None:
    undisturbed, disturbed, _ = runs
    for file in ("policy/model.safetensors", "exported.json"):
        assert (disturbed / file).read_bytes() == (undisturbed / file).read_bytes(), file
