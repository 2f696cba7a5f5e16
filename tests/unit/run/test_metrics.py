import json
import math
from pathlib import Path

import pytest

from megatron_empg.run.config import SftLoggingConfig
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.metrics import MetricsError, MetricsWriter, check_writers, read_metrics


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


@pytest.mark.parametrize("step", ["null", "NaN", '"3"', "-1", "9" * 401, "[1]"])
def test_a_line_whose_step_is_not_a_step_is_left_out_and_cut(tmp_path: Path, step: str) -> None:
    folder = RunFolder(tmp_path).open("")
    MetricsWriter(folder).write(1, {"train/reward": 0.0})
    with folder.metrics.open("a") as file:
        file.write(f'{{"step": {step}, "train/reward": 1.0}}\n{{"train/reward": 2.0}}\n')
    assert read_metrics(folder) == [{"step": 1, "train/reward": 0.0}]
    MetricsWriter(folder, first_step=2).write(2, {"train/reward": 3.0})
    assert folder.metrics.read_text().count("\n") == 2


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
        writer = MetricsWriter(folder, first_step=first_step, logging=SftLoggingConfig())
        for step in range(first_step, first_step + 4):
            writer.write(step, {"train/reward": reward, "policy/loss": math.nan})
        writer.close()
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/reward")] == [
        *((step, 0.0) for step in (1, 2)),
        *((step, 1.0) for step in (3, 4, 5, 6)),
    ]
    assert events.Tags()["scalars"] == ["train/reward"]


def only(**tracker: str) -> SftLoggingConfig:
    """A tracker by its key, and no TensorBoard."""
    return SftLoggingConfig(tensorboard=False, **tracker)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["wandb", "mlflow", "swanlab", "trackio"])
def test_a_missing_package_is_an_error_before_the_run(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MetricsError, match=rf"logging\.{key} is 'empg' .*pip install 'megatron_empg\[{key}\]'"):
        check_writers(only(**{key: "empg"}))


def test_a_missing_tensorboard_is_an_error_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MetricsError, match=r"logging\.tensorboard=false"):
        MetricsWriter(RunFolder(tmp_path).open(""), logging=SftLoggingConfig())


VARIABLES = [
    ("wandb", {}, "WANDB_API_KEY is not in the environment"),
    ("wandb", {"WANDB_MODE": "offline"}, None),
    ("wandb", {"WANDB_API_KEY": "k"}, None),
    ("swanlab", {}, "SWANLAB_API_KEY is not in the environment"),
    ("swanlab", {"SWANLAB_MODE": "offline"}, None),
    ("mlflow", {}, "MLFLOW_TRACKING_URI is not in the environment"),
    ("mlflow", {"MLFLOW_TRACKING_URI": "/tmp/runs"}, "MLFLOW_ALLOW_FILE_STORE"),
    ("mlflow", {"MLFLOW_TRACKING_URI": "file:/tmp/runs", "MLFLOW_ALLOW_FILE_STORE": "true"}, None),
    ("mlflow", {"MLFLOW_TRACKING_URI": "https://server"}, None),
    ("mlflow", {"MLFLOW_TRACKING_URI": "sqlite:////tmp/runs.db"}, None),
    ("trackio", {}, None),
    ("trackio", {"TRACKIO_SPACE_ID": "me/space"}, "HF_TOKEN is not in the environment"),
    ("trackio", {"TRACKIO_SPACE_ID": "me/space", "HF_TOKEN": "t"}, None),
    ("trackio", {"TRACKIO_SERVER_URL": "http://server"}, "TRACKIO_WRITE_TOKEN is not in the environment"),
    ("trackio", {"TRACKIO_SERVER_URL": "http://server", "TRACKIO_WRITE_TOKEN": "t"}, None),
    ("trackio", {"TRACKIO_SERVER_URL": "http://server/?write_token=t"}, None),
]


@pytest.mark.parametrize(("key", "variables", "says"), VARIABLES)
def test_a_tracker_needs_its_variables(
    monkeypatch: pytest.MonkeyPatch, key: str, variables: dict[str, str], says: str | None
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for name in {name for _, named, _ in VARIABLES for name in named}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if says is None:
        check_writers(only(**{key: "empg"}))
        return
    with pytest.raises(MetricsError, match=f"logging.{key} is 'empg' but .*{says}"):
        check_writers(only(**{key: "empg"}))


def test_a_project_has_a_name() -> None:
    with pytest.raises(ValueError, match="at least 1 character"):
        only(mlflow="")


@pytest.mark.parametrize(("first_step", "kept"), [(4, True), (3, False)])
def test_a_continuation_that_does_steps_again_is_a_new_run_of_every_tracker(
    tmp_path: Path, first_step: int, kept: bool
) -> None:
    folder = RunFolder(tmp_path).open("")
    writer = MetricsWriter(folder)
    for step in (1, 2, 3):
        writer.write(step, {"a": 1.0})
    identities = [folder.tracker_id(key) for key in ("wandb", "mlflow", "swanlab", "trackio")]
    for path in identities:
        path.write_text("one")
    MetricsWriter(folder, first_step=first_step)
    assert [path.exists() for path in identities] == [kept] * 4
