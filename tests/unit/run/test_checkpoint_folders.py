"""Which checkpoints a run folder holds is one answer, wherever it is asked for."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_empg.launch.recipe_plan import plan_of
from megatron_empg.recipe import Recipe
from megatron_empg.run.checkpoint_folders import (
    SLOWEST_READ,
    finished_steps,
    last_step,
    reading_seconds,
    step_folder,
)
from megatron_empg.run.folder import RunFolder
from tests.support.recipes import quickstart

NEWEST = 1_000_010
"""More digits than the names have at least."""
NO_CHECKPOINTS = (
    "step_2000000.writing", "step_x", "step_", "step_²", "step_٣٣٣٣٣٣٣", "step_-000001", "step_3000",
    "step_000003.old", "other",
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two checkpoints, names that are none, and a file that is called like one."""
    checkpoints = tmp_path / "run/checkpoints"
    for step in (9, NEWEST):
        step_folder(checkpoints, step).mkdir(parents=True)
        (step_folder(checkpoints, step) / "shard").write_bytes(b"0" * (10 if step == NEWEST else 1_000_000))
    for name in NO_CHECKPOINTS:
        (checkpoints / name).mkdir()
        (checkpoints / name / "shard").write_bytes(b"0" * 1_000_000)
    step_folder(checkpoints, 2 * NEWEST).write_text("a file")
    return tmp_path / "run"


def test_finished_steps_are_folders_with_their_final_name(run: Path) -> None:
    assert finished_steps(run / "checkpoints") == [9, NEWEST]
    assert last_step(run / "checkpoints") == NEWEST


def test_there_may_be_none(tmp_path: Path) -> None:
    assert finished_steps(tmp_path / "absent") == []
    assert last_step(tmp_path / "absent") == 0


def by_the_job_scripts(run: Path) -> object:
    recipe: Recipe = quickstart(f"run.folder={run}")
    return plan_of(recipe).checkpoint


def by_the_watchdog(run: Path) -> object:
    """It looks at the newest checkpoint's size, which here is of a few bytes."""
    return NEWEST if 0 < reading_seconds(run) < 10_000 / SLOWEST_READ else None


@pytest.mark.parametrize(
    "newest", [lambda run: RunFolder(run).last_checkpoint(), by_the_job_scripts, by_the_watchdog]
)
def test_everybody_names_the_same_newest_checkpoint(run: Path, newest: Callable[[Path], object]) -> None:
    assert newest(run) == NEWEST


def test_a_job_is_not_finished_while_the_policy_is_that_of_an_older_checkpoint(run: Path) -> None:
    """A run that was raised to more steps, and killed between its last checkpoint and the export."""
    recipe = quickstart(f"run.folder={run}", "run.steps=9")
    folder = RunFolder(run)
    folder.policy.mkdir()
    for exported, finished in ((9, False), (NEWEST, True)):
        folder.note_export(exported)
        assert plan_of(recipe).finished is finished


@pytest.mark.parametrize("module", ["run.checkpoint_folders", "run.folder", "cluster.watchdog"])
def test_to_ask_does_not_take_the_seconds_of_torchs_import(module: str) -> None:
    asked = f"import sys, megatron_empg.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", asked], check=True)
