"""`empg sft` as a user types it: interrupted, continued, killed, and yet at its end; and ended at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.common.jsonl import read_lines
from megatron_empg.run.metric_names import by_clock

ROOT = Path(__file__).parents[2]
STEPS = 8
SECONDS = 240
"""How long one start may take on a busy machine."""


def start(folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    keys = {
        "run.folder": folder, "run.steps": STEPS, "run.checkpoint_every": 100, "sft.batch_size": 4,
        "sft.validate_every": 3, "actor.data_parallel": 1, "actor.optimizer.warmup_steps": 2,
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in keys.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_empg.cli", "sft", "recipes/miniature_sft.yaml", *words, *overrides],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip


def end(process: "subprocess.Popen[str]") -> str:
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return output


def wait_for_step(process: "subprocess.Popen[str]", folder: Path, step: int) -> None:
    deadline = time.monotonic() + SECONDS
    while not any(line["step"] >= step for line in read_lines(folder / "metrics.jsonl")):
        assert process.poll() is None, end(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def without_clocks(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if not by_clock(key)}
        for line in read_lines(folder / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """An undisturbed run, and one that was interrupted, continued, and whose ranks were killed then; what the
    latter's starts printed."""
    scratch = tmp_path_factory.mktemp("sft")
    whole, interrupted = scratch / "whole", scratch / "interrupted"
    process = start(whole)
    output = end(process)
    assert process.returncode == 0, output

    process = start(interrupted)
    wait_for_step(process, interrupted, 2)
    process.send_signal(signal.SIGINT)
    first = end(process)
    assert process.returncode == 0, first
    done = len(read_lines(interrupted / "metrics.jsonl")) - 1
    assert 2 <= done < STEPS - 1
    assert (interrupted / f"checkpoints/step_{done:06d}/manifest.json").exists()
    assert (interrupted / "policy/model.safetensors").exists()

    process = start(interrupted)
    wait_for_step(process, interrupted, done + 1)
    for rank in _ranks(process.pid):
        os.kill(rank, signal.SIGKILL)
    second = end(process)
    assert process.returncode == 0, second
    process = start(interrupted)
    return whole, interrupted, [first, second, end(process)]


def test_an_interrupt_ends_after_the_step_with_a_checkpoint(runs: tuple[Path, Path, list[str]]) -> None:
    _, _, (first, second, third) = runs
    assert "ending after this step, with a checkpoint" in first
    assert "the same command goes on from there" in first
    assert "continuing a run" in second
    assert f"has finished its {STEPS} steps" in third


def test_one_whose_rank_is_killed_goes_on_by_itself(runs: tuple[Path, Path, list[str]]) -> None:
    _, disturbed, (_, second, _) = runs
    assert "trainer was ended by SIGKILL; going on from step " in second
    assert len((disturbed / "starts").read_text(encoding="utf-8").splitlines()) == 3


def test_in_the_end_it_is_as_one_that_was_never_disturbed(runs: tuple[Path, Path, list[str]]) -> None:
    whole, disturbed, _ = runs
    assert without_clocks(disturbed) == without_clocks(whole)
    for file in ("policy/model.safetensors", "exported.json"):
        assert (disturbed / file).read_bytes() == (whole / file).read_bytes()


def test_held_out_walkthroughs_are_measured(runs: tuple[Path, Path, list[str]]) -> None:
    measured = [line for line in read_lines(runs[0] / "metrics.jsonl") if "validation/loss" in line]
    assert [line["step"] for line in measured] == [0, 3, 6, STEPS]
    assert measured[0]["validation/loss"] > measured[-1]["validation/loss"] > 0
    assert all(0 <= line["validation/correct_surely"] <= 1 for line in measured)


def test_walkthroughs_are_cut_to_what_the_model_can_read(tmp_path: Path) -> None:
    """The walkthroughs are of three turns and about 120 tokens, a microbatch could hold 8,192."""
    small = tmp_path / "small"
    shutil.copytree(ROOT / "recipes/miniature/tokenizer", small)
    config = json.loads((small / "config.json").read_text(encoding="utf-8"))
    (small / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}), encoding="utf-8")
    process = start(tmp_path / "run", "run.steps=2", f"model.path={small}")
    output = end(process)
    assert process.returncode == 0, output
    assert read_lines(tmp_path / "run/metrics.jsonl")[-1]["step"] == 2


def test_a_second_interrupt_ends_it_at_once(tmp_path: Path) -> None:
    process = start(tmp_path / "run", "run.steps=100000")
    wait_for_step(process, tmp_path / "run", 1)
    worker = tmp_path / "run/STOP"
    # Stopped ranks stand for a step that takes long.
    ranks = _stopped_ranks(process.pid)
    process.send_signal(signal.SIGINT)
    while not worker.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output = end(process)
    assert process.returncode not in (0, None)
    assert "Traceback" not in output
    assert "interrupt again to end now" in output
    # A killed process is listed until somebody has asked for its status.
    ends = time.monotonic() + 10
    while any(_lives(rank) for rank in ranks):
        assert time.monotonic() < ends, "a rank outlived the command"
        time.sleep(0.05)


def _lives(process: int) -> bool:
    import psutil

    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _stopped_ranks(launcher: int) -> list[int]:
    found = _ranks(launcher)
    for rank in found:
        os.kill(rank, signal.SIGSTOP)
    return found


def _ranks(launcher: int) -> list[int]:
    import psutil

    found = [
        child.pid
        for child in psutil.Process(launcher).children(recursive=True)
        if "megatron_empg.trainer.worker" in child.cmdline()
        and "megatron_empg.launch.torchrun" not in child.cmdline()
    ]
    assert found
    return found
