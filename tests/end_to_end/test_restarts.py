"""`empg train` whose processes are killed in turn: it goes on by itself and learns the same to the bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_empg.common.jsonl import read_lines
from megatron_empg.run.metric_names import by_clock

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
VICTIMS = ("engine", "engine core", "driver", "torchrun", "rank")
STEPS = 3 + 2 * len(VICTIMS)
SECONDS = 900
"""How long a run may take on a busy machine."""


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


def wait_for_a_step(process: "subprocess.Popen[str]", folder: Path, after: int) -> int:
    """Until a step above `after` is logged and a checkpoint above it saved: which."""
    deadline = time.monotonic() + SECONDS
    while True:
        saved = max([int(path.name[5:]) for path in folder.glob("checkpoints/step_??????")], default=0)
        if saved > after and any(line["step"] > after for line in read_lines(folder / "metrics.jsonl")):
            return saved
        assert process.poll() is None, end(process)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def victim(launcher: int, kind: str) -> psutil.Process:
    """The run's process of that kind."""
    found = []
    for child in psutil.Process(launcher).children(recursive=True):
        try:
            name, parent = kind_of(child), child.parent()
        except psutil.Error:
            continue
        if name == "" and parent is not None and kind_of(parent) == "engine" and "EngineCore" in child.name():
            name = "engine core"
        if name == kind:
            found.append(child)
    assert found, f"no process of the run is {kind}"
    return found[0]


def kind_of(process: psutil.Process) -> str:
    words = process.cmdline()
    if "EngineCore" in process.name():
        return ""
    for module, kind in (
        ("megatron_empg.launch.torchrun", "torchrun"),
        ("megatron_empg.rollout.server", "engine"),
        ("megatron_empg.launch.rollout_service", "driver"),
        ("megatron_empg.trainer.worker", "rank"),
    ):
        if module in words:
            return kind
    return ""


def without_clocks(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if not by_clock(key)}
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

    process, step = start(disturbed), 0
    for number, kind in enumerate(VICTIMS, 1):
        step = wait_for_a_step(process, disturbed, step)
        victim(process.pid, kind).send_signal(signal.SIGKILL)
        deadline = time.monotonic() + SECONDS
        while len(starts(disturbed)) == number:
            assert process.poll() is None, end(process)
            assert time.monotonic() < deadline, f"{kind} was killed and nothing was restarted"
            time.sleep(0.1)
    output = end(process)
    assert process.returncode == 0, output
    return undisturbed, disturbed, output


def test_whatever_is_killed_the_run_goes_on_from_its_newest_checkpoint(runs: tuple[Path, Path, str]) -> None:
    _, disturbed, output = runs
    assert len(starts(disturbed)) == 1 + len(VICTIMS)
    assert starts(disturbed) == sorted(set(starts(disturbed))), "each from a newer checkpoint"
    for name, number in (("engine_0", 2), ("driver", 1), ("trainer", 2)):
        told = [line for line in output.splitlines() if line.startswith(name) and "; going on from step" in line]
        assert len(told) == number, output


def test_it_learns_the_same_to_the_bit(runs: tuple[Path, Path, str]) -> None:
    undisturbed, disturbed, _ = runs
    assert [line["step"] for line in read_lines(disturbed / "metrics.jsonl")] == list(range(STEPS + 1))
    assert without_clocks(disturbed) == without_clocks(undisturbed)


def test_it_exports_the_same_policy(runs: tuple[Path, Path, str]) -> None:
    undisturbed, disturbed, _ = runs
    for file in ("policy/model.safetensors", "exported.json"):
        assert (disturbed / file).read_bytes() == (undisturbed / file).read_bytes(), file
