"""`empg train` and `empg sft`: a run on this machine, by the supervisor that a Slurm job has too.

Engines (vLLM servers), the driver and the trainer ranks (torchrun) are processes of their own, as on a cluster;
here one parent starts them. What they print goes to ``logs/``; the parent shows the steps as they are logged.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_empg.launch.activity import ActivityDisplay
from megatron_empg.launch.attempt import Senses
from megatron_empg.launch.local_parts import check_machine, driver_part, engine_parts, trainer_part
from megatron_empg.launch.local_runner import LaunchError, LocalRunner, processes_of
from megatron_empg.launch.parts import RunPart
from megatron_empg.launch.recipe_plan import plan_of
from megatron_empg.launch.restart import AttemptEnd, RestartAction, RestartOptions, most_restarts
from megatron_empg.launch.supervisor import Stage, Supervisor
from megatron_empg.recipe import Recipe, SftRecipe, load_recipe
from megatron_empg.recipe.check import check_recipe
from megatron_empg.recipe.identity import take_up
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.heartbeat import Beat, read_beat
from megatron_empg.run.metrics import read_metrics
from megatron_empg.run.playing import evaluation_pass
from megatron_empg.run.progress import StepProgress

POLL_SECONDS = 0.2


def launch_training(path: Path, overrides: list[str]) -> Path:
    """Train by a recipe on this machine; returns the report's path.

    Raises RecipeError before anything starts, LaunchError when a process fails for good.
    """
    recipe = load_recipe(path, overrides)
    check_recipe(recipe)
    check_machine(recipe)
    folder = take_up(recipe)
    if _told_finished(folder, recipe.run.steps):
        return _report(folder)
    logged = _size(folder.metrics)
    with processes_of(folder) as runner:
        try:
            _supervise(recipe, folder, runner)
        finally:
            runner.interrupts.ignore()
            runner.stop()
            if runner.interrupts.has_trained or _size(folder.metrics) != logged:
                _report_if_it_can_be_written(folder)
    return folder.report


def launch_sft(path: Path, overrides: list[str]) -> Path:
    """Supervised warm-up by a recipe on this machine; returns the policy's folder."""
    recipe = load_recipe(path, overrides, SftRecipe)
    check_recipe(recipe)
    check_machine(recipe)
    folder = take_up(recipe)
    if not _told_finished(folder, recipe.run.steps):
        with processes_of(folder) as runner:
            _supervise(recipe, folder, runner)
    print(f"policy: {folder.policy}")
    return folder.policy


def _told_finished(folder: RunFolder, steps: int) -> bool:
    """Whether nothing is left to do; says so, and gives the folder free."""
    if not folder.finished(steps):
        return False
    folder.close()
    print(f"{folder.root} has finished its {steps} steps; raise run.steps or give another run.folder")
    return True


def _supervise(recipe: Recipe | SftRecipe, folder: RunFolder, runner: LocalRunner) -> None:
    steps = StepsDisplay(folder, recipe.run.steps)
    with steps.progress:
        site = LocalSite(recipe, folder, runner, steps)
        decision = Supervisor(site, runner, runner.token, POLL_SECONDS, Senses()).run()
        steps.show()
        lost = not decision.in_order and steps.last > folder.last_checkpoint()
        if decision.action is RestartAction.GIVE_UP or lost:
            raise LaunchError(f"{decision.why}; {decision.logs}" if decision.logs else decision.why)
        if not decision.in_order:
            steps.progress.note(f"{decision.why}; logs in {folder.logs}")
        steps.end()


class LocalSite:
    """A run on this machine, as the supervisor sees it."""

    def __init__(
        self, recipe: Recipe | SftRecipe, folder: RunFolder, runner: LocalRunner, steps: StepsDisplay
    ) -> None:
        self.job = f"local-{os.getpid()}-{int(time.time())}"
        self.run_folder = folder.root
        self.most_restarts = most_restarts(os.environ)
        self._recipe, self._folder, self._runner, self._steps = recipe, folder, runner, steps
        self._activity = ActivityDisplay(folder, steps.progress, _passes(recipe))
        self._steps_before = steps.last

    def stages(self, number: int) -> Sequence[Stage]:
        """Everything at once: the trainer waits for the engines itself. What an earlier start's ranks said of
        themselves is taken away, as they may have been killed, and there may be fewer now."""
        shutil.rmtree(self._folder.heartbeats, ignore_errors=True)
        self._runner.interrupts.start(self._folder.stop, self._steps.progress.note, self._trains)
        self._steps_before = self._steps.last
        parts = self._parts()
        self._activity.start(parts)
        return [parts]

    def _parts(self) -> list[RunPart]:
        plan = plan_of(self._recipe, starts_services=False)
        if not isinstance(self._recipe, Recipe):
            return [trainer_part(plan)]
        engines = engine_parts(self._recipe)
        urls = [url for engine in engines for url in engine.addresses]
        driver = driver_part(plan, urls)
        return [*engines, driver, trainer_part(plan, driver.addresses[0], urls)]

    def checkpoint(self) -> int:
        return self._folder.last_checkpoint()

    def finished(self) -> bool:
        return self._folder.finished(self._recipe.run.steps)

    def asked_to_end(self) -> bool:
        """No signal does: an interrupt makes the file STOP, which the supervisor sees, or ends the command."""
        return False

    def watchdog_verdict(self) -> AttemptEnd | None:
        """One machine has no watchdog."""
        return None

    def means(self, end: AttemptEnd) -> RestartOptions:
        return RestartOptions(most_restarts=self.most_restarts)

    def serving(self) -> None:
        self._activity.serve()

    def look(self) -> None:
        """Show steps, and what is done beside them."""
        self._steps.show()
        beat = self._activity.look(logged=self._has_logged(self._steps.last))
        if _in_a_step(beat) or self._has_logged(self._steps.last):
            self._runner.interrupts.has_trained = True

    def _trains(self) -> bool:
        """Whether a step of this start runs, or was logged: a heartbeat comes every two seconds, which a step may
        be shorter than. Before the first step nothing would be lost, and an evaluation may take long.
        """
        beat = read_beat(self._folder.heartbeat(0))
        return _in_a_step(beat) or self._has_logged(_last_step(read_metrics(self._folder)))

    def _has_logged(self, last: int) -> bool:
        """Whether this start has logged a step, as `last` is the last that was."""
        return last > max(self._steps_before, 0)

    def say(self, line: str) -> None:
        self._steps.progress.note(line)


class StepsDisplay:
    """Shows steps as they are logged."""

    def __init__(self, folder: RunFolder, total: int) -> None:
        self._folder, self._total, self._size = folder, total, 0
        self._shown = _last_step(read_metrics(folder))
        self.progress = StepProgress(total, done=max(self._shown, 0))
        self.progress.note(f"run folder {folder.root}; logs in {folder.logs}")
        if self._shown > 0:
            self.progress.note(f"continuing a run that has logged {self._shown} steps")

    @property
    def last(self) -> int:
        """The last step that was logged; -1 without one."""
        return self._shown

    def show(self) -> None:
        """Those that were logged since the last call."""
        size = _size(self._folder.metrics)
        if size == self._size:
            return
        self._size = size
        records = read_metrics(self._folder)
        last = _last_step(records)
        shown = min(self._shown, last)  # a resumed run cuts away what it will do again
        for record in records:
            if record["step"] > shown:
                self.progress.finish_step(record["step"], record)
        self._shown = last

    def end(self) -> None:
        """Say so where the run ended before its last step."""
        if self._shown < self._total:
            self.progress.note(
                f"ended after step {max(self._shown, 0)} of {self._total}; the same command goes on from there"
            )


def _passes(recipe: Recipe | SftRecipe) -> list[str]:
    """Those of an evaluation, in their order; a warm-up has none."""
    if not isinstance(recipe, Recipe):
        return []
    return [evaluation_pass(split, greedy=greedy) for split, greedy in recipe.evaluation.grid()]


def _in_a_step(beat: Beat | None) -> bool:
    """Whether the rank of this heartbeat is in a training step."""
    return beat is not None and beat.step > 0


def _last_step(records: Sequence[Mapping[str, Any]]) -> int:
    """The last step that was logged; -1 without one."""
    return max((int(record["step"]) for record in records), default=-1)


def _size(path: Path) -> int:
    """In bytes; 0 where there is no file."""
    return path.stat().st_size if path.exists() else 0


def _report(folder: RunFolder) -> Path:
    from megatron_empg.report.page import write_report

    path = write_report(folder.root)
    print(f"report: {path}")
    return path


def _report_if_it_can_be_written(folder: RunFolder) -> None:
    """The report of a run that may end with an error, which one of the report's own must not hide."""
    try:
        _report(folder)
    except OSError as error:
        print(f"no report was written: {error}", file=sys.stderr)
