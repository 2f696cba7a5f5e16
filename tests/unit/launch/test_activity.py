"""The lines that say what a run does before its first step, and what is slow."""

import io
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from megatron_empg.launch.activity import BEFORE_STEPS, IN_STEP, ActivityDisplay, activity_of
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.parts import RunPart
from megatron_empg.recipe import load_recipe
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.heartbeat import Beat
from megatron_empg.run.playing import FIRST_QUESTIONS, Playing
from megatron_empg.run.progress import StepProgress
from megatron_empg.trainer.phase_limits import phase_limits

PASSES = ["test_id, sampled", "test_id, greedy"]
PARTS = [RunPart(name, ("true",), ExitCode.ENGINES) for name in ("engine_0", "driver", "trainer")]


def beat(phase: str, step: int = 0) -> Beat:
    return Beat(0, "node", 1, 5, step, phase, 0, "loop.py:1", 900.0)


class Shown:
    """A run folder, and what is said of it at each second of a clock that the test moves."""

    def __init__(self, root: Path, *, terminal: bool = False) -> None:
        self.folder, self.now, self.stream = RunFolder(root), 0.0, io.StringIO()
        self.folder.heartbeats.mkdir(parents=True)
        console = Console(file=self.stream, width=200, force_terminal=terminal, highlight=False, soft_wrap=True)
        self.progress = StepProgress(4, console=console)
        self.shown = ActivityDisplay(self.folder, self.progress, PASSES, clock=lambda: self.now)

    def look(
        self,
        told: Beat | None = None,
        playing: Playing | None = None,
        *,
        seconds: float = 1.0,
        logged: bool = False,
    ) -> list[str]:
        """What is printed so many seconds later."""
        if told is not None:
            self.folder.heartbeat(0).write_text(json.dumps(asdict(told)), encoding="utf-8")
        self.folder.playing.unlink(missing_ok=True)
        if playing is not None:
            self.folder.playing.write_text(json.dumps(asdict(playing)), encoding="utf-8")
        self.now += seconds
        before = len(self.stream.getvalue())
        self.shown.look(logged=logged)
        return self.stream.getvalue()[before:].splitlines()


def test_each_thing_before_the_first_step_is_one_line(tmp_path: Path) -> None:
    run = Shown(tmp_path)
    run.shown.start(PARTS)
    said = [*run.look(), *run.look(beat("start")), *run.look()]
    run.shown.serve()
    said += [*run.look(), *run.look(), *run.look(beat("sync")), *run.look(beat("rollout"))]
    said += [*run.look(playing=Playing(FIRST_QUESTIONS, 8)), *run.look(playing=Playing(FIRST_QUESTIONS, 8, 5))]
    said += run.look(beat("evaluate"), Playing(PASSES[0], 60))
    said += [*run.look(playing=Playing(PASSES[0], 60, 30)), *run.look(playing=Playing(PASSES[1], 60))]
    said += [*run.look(beat("rollout", 1)), *run.look(beat("update", 1))]
    assert said == [
        "starting engine_0, driver, trainer",
        "loading the policy into the trainer",
        "sending the policy to the engines",
        "playing the first questions",
        "playing 8 first questions",
        "evaluating: test_id, sampled, 60 questions (1 of 2)",
        "evaluating: test_id, greedy, 60 questions (2 of 2)",
        "playing the episodes of step 1",
        "step 1: updating the policy",
    ]


def test_between_what_is_played_nothing_is_said(tmp_path: Path) -> None:
    run = Shown(tmp_path)
    run.shown.serve()
    said = [*run.look(beat("rollout"), Playing(FIRST_QUESTIONS, 8)), *run.look()]
    for number in range(2):
        said += [*run.look(beat("evaluate"), Playing(PASSES[number], 60)), *run.look()]
    assert said == [
        "playing 8 first questions",
        "evaluating: test_id, sampled, 60 questions (1 of 2)",
        "evaluating: test_id, greedy, 60 questions (2 of 2)",
    ]


def test_what_is_slow_is_named_with_its_count_and_ever_more_seldom(tmp_path: Path) -> None:
    run = Shown(tmp_path)
    run.shown.serve()
    run.look(beat("evaluate"), Playing(PASSES[0], 60))
    said = [line for second in range(1, 300) for line in run.look(playing=Playing(PASSES[0], 60, second // 6))]
    named = "still evaluating: test_id, sampled, 60 questions (1 of 2)"
    assert said == [
        f"{named}: 5 of 60 are over after 30s",
        f"{named}: 10 of 60 are over after 1m 00s",
        f"{named}: 20 of 60 are over after 2m 00s",
        f"{named}: 40 of 60 are over after 4m 00s",
    ]


def test_once_steps_are_logged_only_what_is_slower_than_before_is_a_line(tmp_path: Path) -> None:
    run = Shown(tmp_path)
    run.shown.serve()
    said = []
    for step in range(2, 5):
        said += run.look(beat("rollout", step), logged=True)
        said += [line for _ in range(50) for line in run.look(logged=True)]
        said += run.look(beat("update", step), logged=True)
    assert said == ["still playing the episodes of step 2 after 30s"], "a phase that always takes 50 s is not slow"
    run.look(beat("rollout", 5), logged=True)
    assert run.look(seconds=200, logged=True) == ["still playing the episodes of step 5 after 3m 20s"]


def test_a_new_start_says_what_starts_again(tmp_path: Path) -> None:
    run = Shown(tmp_path)
    run.shown.start(PARTS)
    run.look()
    run.shown.serve()
    run.look(beat("rollout", 3), logged=True)
    run.folder.heartbeat(0).unlink()
    run.shown.start(PARTS[2:])
    assert run.look() == ["starting trainer"]


def test_a_terminal_shows_counts_in_its_live_line_and_no_line_for_what_is_slow(tmp_path: Path) -> None:
    run = Shown(tmp_path, terminal=True)
    run.shown.serve()
    run.look(beat("evaluate"), Playing(PASSES[0], 60))
    with run.progress:
        assert not any("still" in line for line in run.look(playing=Playing(PASSES[0], 60, 7), seconds=100))
    assert "evaluating: test_id, sampled, 60 questions (1 of 2) 7/60" in run.stream.getvalue()


def test_every_phase_with_a_limit_of_the_watchdogs_has_words() -> None:
    recipe = load_recipe(Path("recipes/quickstart.yaml"))
    phases = set(phase_limits(recipe)) - {"start"}
    assert phases == set(IN_STEP)
    assert {"start", "sync", "rollout", "evaluate"} == set(BEFORE_STEPS)
    for phase in phases:
        assert "{" not in activity_of(beat(phase, 3), None, PASSES).line
