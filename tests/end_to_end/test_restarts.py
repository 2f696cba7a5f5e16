"""`empg train` whose processes are killed in turn: an engine or the rollout service comes back alone, a killed
trainer starts everything again, and what is learnt is the same to the bit."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_empg.common.jsonl import read_lines
from tests.end_to_end.killed_runs import (
    SECONDS,
    end,
    kill,
    learnt,
    starts,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ALONE = ("engine", "engine core", "driver")
"""Kinds of processes that are started again alone."""
TRAINER = ("torchrun", "rank")
"""Those with which everything is started again."""
VICTIMS = (*ALONE, *TRAINER)
STEPS = 3 + 3 * len(VICTIMS)


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
