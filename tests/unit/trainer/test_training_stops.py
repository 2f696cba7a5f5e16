"""Where a run ends that is asked to stop: before its first step, or behind a step that is logged and saved."""

from pathlib import Path
from typing import Any

import pytest

from megatron_empg.run.folder import RunFolder
from megatron_empg.trainer.loop import Training
from megatron_empg.trainer.phases import Phases
from tests.support.recipes import quickstart


class Saved:
    """In the place of checkpoints; notes the steps of which there is one."""

    saving = False

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def save(self, step: int) -> None:
        self.said.append(f"save {step}")

    def wait(self) -> None:
        self.said.append("wait")


class Rehearsed(Training):
    """The loop alone: what it calls is noted, and at one call the file STOP is touched."""

    def __init__(self, folder: RunFolder, *, first: int, stop_at: str) -> None:
        overrides = ["run.steps=4", "run.checkpoint_every=2", "evaluation.every=1"]
        self.recipe = quickstart(*overrides)
        self.folder, self.first, self.stop_at = folder, first, stop_at
        self.said: list[str] = []
        self.checkpoints: Any = Saved(self.said)
        self.phases, self.writer, self.driver = Phases(None), None, None

    def note(self, what: str) -> None:
        self.said.append(what)
        if what == self.stop_at:
            self.folder.stop.touch()

    def _publish(self, version: int) -> None:
        self.note(f"publish {version}")

    def _probe(self) -> None:
        self.note("probe")

    def _evaluate(self, step: int) -> dict[str, float]:
        self.note("evaluate")
        return {}

    def _step(self, step: int) -> dict[str, float]:
        self.note(f"step {step + 1}")
        return {}

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        self.note(f"write {step}")

    def _export(self) -> None:
        self.note("export")

    def _agree(self, flag: bool) -> bool:
        return flag


def run(folder: Path, *, stop_at: str, first: int = 0) -> list[str]:
    folder.mkdir(exist_ok=True)
    training = Rehearsed(RunFolder(folder), first=first, stop_at=stop_at)
    training.run()
    return training.said


def test_without_a_stop_every_step_is_done_and_logged_before_its_checkpoint(tmp_path: Path) -> None:
    said = run(tmp_path, stop_at="never")
    assert said[:4] == ["publish 0", "probe", "evaluate", "write 0"]
    assert said[4:10] == ["step 1", "evaluate", "write 1", "step 2", "evaluate", "write 2"]
    assert said[10] == "save 2"
    assert said[-3:] == ["save 4", "wait", "export"]


@pytest.mark.parametrize(
    ("stop_at", "done"),
    [
        ("publish 0", ["publish 0", "probe", "wait"]),
        ("probe", ["publish 0", "probe", "wait"]),
        ("evaluate", ["publish 0", "probe", "evaluate", "write 0", "wait"]),
    ],
)
def test_before_the_first_step_nothing_more_is_begun(stop_at: str, done: list[str], tmp_path: Path) -> None:
    """Nor is a checkpoint written: the same command begins anew."""
    assert run(tmp_path, stop_at=stop_at) == done


def test_a_run_that_goes_on_ends_before_its_next_step_too(tmp_path: Path) -> None:
    assert run(tmp_path, stop_at="publish 2", first=2) == ["publish 2", "wait"]


def test_behind_a_step_the_run_is_logged_and_saved(tmp_path: Path) -> None:
    assert run(tmp_path, stop_at="step 1")[-4:] == ["evaluate", "write 1", "save 1", "wait"]


def test_a_stop_during_a_later_evaluation_begins_no_other_step(tmp_path: Path) -> None:
    said = run(tmp_path, stop_at="write 3")
    assert said[-4:] == ["evaluate", "write 3", "save 3", "wait"]
