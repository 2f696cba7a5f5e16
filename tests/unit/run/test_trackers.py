"""Trackers: their own packages where those are installed, each offline; and what fails in them ends nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from megatron_empg.run.config import SftLoggingConfig
from megatron_empg.run.trackers import kinds
from megatron_empg.run.trackers.kinds import KINDS, asked_for
from megatron_empg.run.trackers.mlflow_server import flat
from megatron_empg.run.trackers.tracker_thread import TrackerThread, close_all, error_without_secrets

ROOT = Path(__file__).parents[3]


class Listed:
    """Keeps what it is given, and raises where a test wants it to."""

    def __init__(self, fails: tuple[int, ...] = ()) -> None:
        self.fails, self.steps, self.closed = fails, list[int](), False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step in self.fails:
            raise ConnectionError(f"no answer to step {step}")
        self.steps.append(step)

    def close(self) -> None:
        self.closed = True


def test_steps_arrive_in_order_and_the_end_waits_for_them() -> None:
    tracker = Listed()
    thread = TrackerThread("Listed", lambda: tracker)
    for step in range(50):
        thread.log(step, {"a": 1.0})
    close_all([thread])
    assert tracker.steps == list(range(50))
    assert tracker.closed


def test_a_step_that_fails_is_told_once_and_the_next_ones_arrive(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Listed(fails=(1, 3))
    thread = TrackerThread("Listed", lambda: tracker)
    for step in range(5):
        thread.log(step, {})
    close_all([thread])
    assert tracker.steps == [0, 2, 4]
    (said,) = caplog.messages
    assert said.startswith("Listed did not take step 1, ConnectionError: no answer to step 1. Training goes on")


@pytest.mark.parametrize("error", [OSError("no network"), SystemExit("a key is wrong")])
def test_a_tracker_that_cannot_be_opened_costs_a_warning(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def opens() -> Listed:
        raise error

    thread = TrackerThread("Listed", opens)
    thread.log(1, {})
    close_all([thread])
    (said,) = caplog.messages
    assert said.startswith(f"Listed cannot be used, {type(error).__name__}: {error}")


def test_nobody_waits_for_a_tracker_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    going_on = threading.Event()

    def opens() -> Listed:
        going_on.wait(60)
        return Listed()

    thread = TrackerThread("Listed", opens)
    for step in range(2000):
        thread.log(step, {})
    assert "does not keep up" in caplog.text
    close_all([thread], seconds=0.1)
    assert len(caplog.messages) == 1
    going_on.set()
    assert thread.join(60)


def test_the_end_waits_once_for_all_trackers_that_hang(caplog: pytest.LogCaptureFixture) -> None:
    going_on = threading.Event()

    class Hangs(Listed):
        def close(self) -> None:
            going_on.wait(60)
            self.closed = True

    hanging, well = [Hangs(), Hangs()], Listed()
    threads = [TrackerThread(f"Hanging {n}", lambda tracker=tracker: tracker) for n, tracker in enumerate(hanging)]
    threads.append(TrackerThread("Listed", lambda: well))
    began = time.monotonic()
    close_all(threads, seconds=2)
    assert time.monotonic() - began < 3.5, "two seconds for all of them, not for each"
    assert [message.split(" was")[0] for message in caplog.messages] == ["Hanging 0", "Hanging 1"]
    assert well.closed, "it ends beside those that hang"
    going_on.set()
    assert all(thread.join(60) for thread in threads)


@pytest.mark.parametrize("key", [kind.key for kind in KINDS])
def test_a_project_is_the_tracker_s_that_its_key_names(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever order the kinds stand."""
    logging = SftLoggingConfig.model_validate({key: "empg"})
    for order in (KINDS, KINDS[::-1]):
        monkeypatch.setattr(kinds, "KINDS", order)
        assert [(kind.key, project) for kind, project in asked_for(logging)] == [(key, "empg")]


def test_no_warning_holds_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@server")
    said = error_without_secrets(RuntimeError("key 0123456789 refused\nby https://me:secret@server/api"))
    assert said == "RuntimeError: key *** refused by ***/api"


def test_parameters_are_the_recipes_keys() -> None:
    recipe = {"run": {"seed": 1, "folder": "a"}, "actor": {"optimizer": {"lr": 0.5}}, "x y": {}, "list": [1]}
    assert list(flat(recipe)) == [
        ("run.seed", 1),
        ("run.folder", "a"),
        ("actor.optimizer.lr", 0.5),
        ("list", [1]),
    ]


# The packages themselves

PROGRAM = """
import json, logging, sys
from pathlib import Path
from megatron_empg.run.config import SftLoggingConfig
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.metrics import MetricsWriter
from megatron_empg.run.trackers import tracker_thread

tracker_thread.SECONDS_TO_CLOSE = 300  # a busy machine imports for long
logging.basicConfig(level=logging.WARNING)
key, root = sys.argv[1], Path(sys.argv[2])
recipe = {"run": {"seed": 1}, "model": {"path": "p"}}
called = []
for first, steps in ((1, (1, 2)), (3, (3,)), (2, (2, 3))):  # begun, continued in order, and after a crash
    folder = RunFolder(root / "demo").open("")
    writer = MetricsWriter(
        folder, first_step=first, logging=SftLoggingConfig(tensorboard=False, **{key: "empg"}), recipe=recipe
    )
    for step in steps:
        metrics = {"train/reward": 10.0 * first + step, "eval/dev/sampled/3 hops": 1, "bad": float("nan")}
        writer.write(step, metrics)
    writer.close()
    folder.close()
    called.append(folder.tracker_id(key).read_text())
print("CALLED", json.dumps(called))
"""
OFFLINE = {"WANDB_MODE": "offline", "SWANLAB_MODE": "offline", "MLFLOW_ALLOW_FILE_STORE": "true"}


def offline(root: Path) -> dict[str, str]:
    """Variables under which no tracker sends anything, and all of them write below `root`."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "SWANLAB", "TRACKIO"))
    }
    places = {"MLFLOW_TRACKING_URI": f"file:{root / 'mlflow'}", "TRACKIO_DIR": str(root / "trackio")}
    # Whatever a package looks for in the home folder is not there.
    return {**kept, **OFFLINE, **places, "HOME": str(root), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def run(key: str, root: Path, program: str = PROGRAM) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, key, str(root)],
        cwd=root,
        env=offline(root),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Training goes on" not in done.stderr, done.stderr
    return done.stdout


def written(key: str, root: Path) -> list[str]:
    """Three starts of a run; what the tracker called it after each. Skips where its package is not installed."""
    if importlib.util.find_spec(key) is None:
        pytest.skip(f"{key} is not installed: pip install 'megatron_empg[{key}]'")
    output = run(key, root)
    (line,) = [line for line in output.splitlines() if line.startswith("CALLED")]
    called = json.loads(line.removeprefix("CALLED"))
    assert called[0] == called[1], "a run that was ended in order goes on"
    assert called[1] != called[2], "one that does steps again is a new run"
    return called


def test_every_kind_is_tried_below() -> None:
    tried = {name.removeprefix("test_").removesuffix("_has_the_curves") for name in globals()}
    assert {kind.key for kind in KINDS} <= tried


MLFLOW_READS = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient()
told = []
for run in sorted(client.search_runs(["EXPERIMENT"]), key=lambda run: run.info.start_time):
    rewards = client.get_metric_history(run.info.run_id, "train/reward")
    told.append([run.info.run_id, run.info.status, run.data.params, [[m.step, m.value] for m in rewards]])
print(json.dumps(told))
""".replace('"EXPERIMENT"', 'client.get_experiment_by_name("empg").experiment_id')


def test_mlflow_has_the_curves(tmp_path: Path) -> None:
    called = written("mlflow", tmp_path)
    parameters = {"run.seed": "1", "model.path": "p"}
    assert json.loads(run("mlflow", tmp_path, MLFLOW_READS).splitlines()[-1]) == [
        [called[0], "FINISHED", parameters, [[1, 11.0], [2, 12.0], [3, 33.0]]],
        [called[2], "FINISHED", parameters, [[2, 22.0], [3, 23.0]]],
    ]


TRACKIO_READS = """
import json
from trackio.sqlite_storage import SQLiteStorage
names = sorted(SQLiteStorage.get_runs("empg"))
print(json.dumps({n: [[l["step"], l["train/reward"]] for l in SQLiteStorage.get_logs("empg", n)] for n in names}))
"""


def test_trackio_has_the_curves(tmp_path: Path) -> None:
    called = written("trackio", tmp_path)
    assert json.loads(run("trackio", tmp_path, TRACKIO_READS).splitlines()[-1]) == {
        f"demo-{called[0]}": [[1, 11.0], [2, 12.0], [3, 33.0]],
        f"demo-{called[2]}": [[2, 22.0], [3, 23.0]],
    }


def test_wandb_has_the_curves(tmp_path: Path) -> None:
    called = written("wandb", tmp_path)
    files = sorted((tmp_path / "demo/logs/wandb").glob("offline-run-*/run-*.wandb"))
    assert sorted(path.stem.removeprefix("run-") for path in files) == sorted(called)
    assert [path for path in files if b"train/reward" not in path.read_bytes()] == []


def test_swanlab_has_the_curves(tmp_path: Path) -> None:
    called = written("swanlab", tmp_path)
    files = sorted((tmp_path / "demo/logs/swanlab").glob("run-*/run-*.swanlab"))
    assert sorted(path.stem.removeprefix("run-") for path in files) == sorted(called)
    assert [path for path in files if b"train/reward" not in path.read_bytes()] == []
