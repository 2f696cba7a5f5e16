"""`empg train` with a lag: a killed run is replayed from its batches to the bit; no group trains twice."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.common.jsonl import read_lines
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.run.folder import RunFolder
from tests.end_to_end.killed_runs import end, kill, learnt, starts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 8
SECONDS = 900
"""How long a wait may take on a busy machine."""
VICTIMS = ("driver", "rank")


def start(folder: Path, **more: Any) -> "subprocess.Popen[str]":
    overrides: dict[str, Any] = {
        "run.folder": folder, "run.steps": STEPS, "run.checkpoint_every": 2, "run.keep_checkpoints": STEPS,
        "rollout.groups": 4, "rollout.group_size": 4, "rollout.max_lag": 1, "algorithm.correction": "tis",
        "engines.kv_cache_gib": 0.125, "evaluation.questions": 0, "limits.min_groups": 1,
        "limits.sync_timeout": 200,
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in (overrides | more).items()]
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_empg.cli", "train", "recipes/quickstart.yaml", *words],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip


def batches(folder: Path) -> list[Batch]:
    """What the run's steps were trained on."""
    run = RunFolder(folder)
    return [Batch.from_bytes(run.batch(step).read_bytes()) for step in run.batch_steps()]


def wait_for_a_batch(process: "subprocess.Popen[str]", folder: Path, after: int) -> int:
    """Until the batch of a step above `after` is there, which the step is then under way with: which."""
    deadline = time.monotonic() + SECONDS
    while True:
        newest = max(RunFolder(folder).batch_steps(), default=0)
        if newest > after:
            return newest
        assert process.poll() is None, end(process)
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run whose rollout service and trainer were killed in the middle of a step, and its replay."""
    scratch = tmp_path_factory.mktemp("stream")
    disturbed, replayed = scratch / "disturbed", scratch / "replayed"
    before = disturb(disturbed)
    process = start(replayed, **{"rollout.replay_from": disturbed})
    output = end(process)
    assert process.returncode == 0, output
    return {"disturbed": disturbed, "replayed": replayed, "before": before}


def disturb(folder: Path) -> dict[int, bytes]:
    """A run to its end, each of whose victims is killed once; the batches that were under way then."""
    process, step = start(folder), 2
    before: dict[int, bytes] = {}
    try:
        for kind in VICTIMS:
            step = wait_for_a_batch(process, folder, step)
            before[step] = RunFolder(folder).batch(step).read_bytes()
            kill(process, kind)
            step += 2
        output = end(process)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return before


def test_a_run_that_was_killed_is_replayed_from_its_batches_to_the_bit(runs: dict[str, Any]) -> None:
    disturbed, replayed = runs["disturbed"], runs["replayed"]
    assert [line["step"] for line in read_lines(disturbed / "metrics.jsonl")] == list(range(STEPS + 1))
    assert learnt(replayed) == learnt(disturbed)
    for file in ("policy/model.safetensors", "exported.json"):
        assert (replayed / file).read_bytes() == (disturbed / file).read_bytes(), file
    assert RunFolder(replayed).batch_steps() == []


def test_the_service_came_back_alone_and_the_trainer_by_a_new_start(runs: dict[str, Any]) -> None:
    assert len(starts(runs["disturbed"])) == 2


def test_a_step_that_was_broken_off_is_done_again_with_its_batch(runs: dict[str, Any]) -> None:
    for step, data in runs["before"].items():
        assert RunFolder(runs["disturbed"]).batch(step).read_bytes() == data


def test_the_accounts_balance_and_no_group_is_trained_on_twice(runs: dict[str, Any]) -> None:
    trained: list[int] = []
    for step, batch in enumerate(batches(runs["disturbed"])):
        account, metrics = batch.account, batch.metrics
        assert account is not None
        assert account.batches == step + 1
        trained += account.numbers
        assert account.trained == len(trained)
        places = ("trained", "dropped_equal", "dropped_errors", "dropped_stale", "in_flight", "ready")
        assert metrics["stream/started"] == sum(metrics[f"stream/{place}"] for place in places)
    assert len(set(trained)) == len(trained) == STEPS * 4


def test_no_token_is_older_than_the_lag_and_some_are_of_older_weights(runs: dict[str, Any]) -> None:
    older = 0
    for step, batch in enumerate(batches(runs["disturbed"])):
        lags = step - batch.token_versions
        assert 0 <= int(lags.min()) <= int(lags.max()) <= 1
        older += int((lags == 1).sum())
    assert older > 0


def test_the_recipe_of_the_replay_says_what_it_replays(runs: dict[str, Any]) -> None:
    said = json.dumps(RunFolder(runs["replayed"]).recipe.read_text(encoding="utf-8"))
    assert f"replay_from: {runs['disturbed']}" in said
