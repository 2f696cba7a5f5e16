import json
import math
from pathlib import Path

import pytest

from megatron_empg.run.folder import RunFolder
from megatron_empg.run.metrics import WANDB_RUN_ID, MetricsError, MetricsWriter, check_writers, read_metrics


def test_one_line_a_step_on_disk_at_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).open("")
    writer = MetricsWriter(folder)
    writer.write(1, {"train/reward": 0.25, "eval/test_id/sampled": None, "train/episodes": 64})
    assert read_metrics(folder) == [{"step": 1, "train/reward": 0.25, "train/episodes": 64}]
    writer.write(2, {"train/reward": 0.5})
    assert [line["step"] for line in read_metrics(folder)] == [1, 2]


def test_a_resumed_run_writes_no_step_twice(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).open("")
    writer = MetricsWriter(folder)
    for step in range(1, 8):
        writer.write(step, {"train/reward": 0.0})
    with folder.metrics.open("a") as file:
        file.write('{"step": 8, "tr')  # killed while writing
    resumed = MetricsWriter(folder, first_step=6)
    for step in range(6, 9):
        resumed.write(step, {"train/reward": 1.0})
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [(line["step"], line["train/reward"]) for line in lines] == [
        *((step, 0.0) for step in range(1, 6)),
        *((step, 1.0) for step in range(6, 9)),
    ]


def test_steps_must_rise(tmp_path: Path) -> None:
    writer = MetricsWriter(RunFolder(tmp_path).open(""), first_step=4)
    with pytest.raises(ValueError, match="step 3 after those of step 3"):
        writer.write(3, {})
    writer.write(4, {})
    with pytest.raises(ValueError, match="steps must rise"):
        writer.write(4, {})


def test_a_value_that_is_no_number_stays_valid_json(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).open("")
    MetricsWriter(folder).write(1, {"policy/loss": math.nan, "policy/grad_norm": math.inf})
    assert read_metrics(folder) == [{"step": 1, "policy/loss": None, "policy/grad_norm": None}]


def test_tensorboard_has_the_curve_without_the_steps_done_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(tmp_path).open("")
    for first_step, reward in ((1, 0.0), (3, 1.0)):
        writer = MetricsWriter(folder, first_step=first_step, tensorboard=True)
        for step in range(first_step, first_step + 4):
            writer.write(step, {"train/reward": reward, "policy/loss": math.nan})
        writer.close()
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/reward")] == [
        *((step, 0.0) for step in (1, 2)),
        *((step, 1.0) for step in (3, 4, 5, 6)),
    ]
    assert events.Tags()["scalars"] == ["train/reward"]


def test_a_missing_writer_is_an_error_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MetricsError, match="pip install wandb"):
        check_writers(tensorboard=False, wandb="empg")
    with pytest.raises(MetricsError, match=r"logging\.tensorboard=false"):
        MetricsWriter(RunFolder(tmp_path).open(""), tensorboard=True)


def test_wandb_needs_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(MetricsError, match="WANDB_API_KEY"):
        check_writers(tensorboard=False, wandb="empg")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_writers(tensorboard=False, wandb="empg")


@pytest.mark.parametrize(("first_step", "kept"), [(4, True), (3, False)])
def test_a_continuation_that_does_steps_again_is_a_new_wandb_run(
    tmp_path: Path, first_step: int, kept: bool
) -> None:
    folder = RunFolder(tmp_path).open("")
    writer = MetricsWriter(folder)
    for step in (1, 2, 3):
        writer.write(step, {"a": 1.0})
    (folder.root / WANDB_RUN_ID).write_text("one")
    MetricsWriter(folder, first_step=first_step)
    assert (folder.root / WANDB_RUN_ID).exists() is kept
