"""Makes the runs of a study that have no line yet, one after the other, each as `empg train`.

What is killed at any moment loses nothing but a run's steps since its checkpoint: the same command goes on. Two
commands side by side share the runs out between them.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path

from megatron_empg.common.log_ends import first_error
from megatron_empg.run.metrics import read_metrics
from megatron_empg.study.cells import Cell, Setting, Settings, check_settings
from megatron_empg.study.config import Study
from megatron_empg.study.errors import StudyError
from megatron_empg.study.measured import result_of
from megatron_empg.study.places import CellPlace
from megatron_empg.study.results import Ending, append_result, check_identities, read_results
from megatron_empg.study.training_process import TrainingProcess

PROGRAM = (sys.executable, "-m", "megatron_empg.cli")
UNUSABLE = 2
"""The status of `empg train` for a recipe that cannot be used."""
BY_SIGNAL = (130, 143)
"""Its statuses when a signal ended it."""
LONGEST = 400
"""Characters of an error that a line keeps."""
GUARD = re.compile(r"error: (step \d+: .*)")
"""What the trainer says when a guard of its own ends the run: it learns nothing any more, or has diverged."""


class CellState(Enum):
    """What became of a cell that was looked at."""

    HAS_A_LINE = "has a line"
    ELSEWHERE = "another process makes it"
    NOT_OVER = "ended before its last step; the same command goes on"
    FAILED_ONCE = "ended with an error"


class StudyRunner:
    """The runs of a study, made below one folder. `program`: what is called with "train" and a recipe."""

    def __init__(
        self,
        study: Study,
        settings: Settings,
        runs: Path,
        *,
        minutes: float = float("inf"),
        program: Sequence[str] = PROGRAM,
        say: Callable[[str], None] = print,
    ) -> None:
        """After so many `minutes` no run is begun, and the running one is asked to end behind its step.

        Raises StudyError for lines of other runs under the names of these.
        """
        check_identities(study.results, settings, read_results(study.results))
        self._study, self._settings, self._runs = study, settings, runs
        self._program, self._say = program, say
        self._process = TrainingProcess(time.monotonic() + 60 * minutes)

    def run(self, cells: Sequence[Cell]) -> bool:
        """Make the cells that have no line; whether all of them have one then.

        Raises StudyError before anything runs for one that cannot be, and for a run that ended before its first
        step, which says nothing of its method.
        """
        done = read_results(self._study.results)
        places = {(cell.task, cell.method) for cell in cells if cell not in done}
        check_settings({place: setting for place, setting in self._settings.items() if place in places})
        with self._process.interrupts():
            for cell in cells:
                self._complete(cell)
        return set(cells) <= set(read_results(self._study.results))

    def _complete(self, cell: Cell) -> None:
        """Try a cell until it has a line, or is not ours to make now."""
        state = CellState.FAILED_ONCE
        while state is CellState.FAILED_ONCE and not self._process.over():
            state = self._look_at(cell)
            if state is not CellState.HAS_A_LINE:
                self._say(f"{cell.name}: {state.value}")

    def _look_at(self, cell: Cell) -> CellState:
        place = CellPlace(self._runs, cell)
        with place.held() as ours:
            if not ours:
                return CellState.ELSEWHERE
            # Read under the lock: another process may have written the line just now.
            result = read_results(self._study.results).get(cell)
            if result is None:
                return self._make(cell, place)
            if result.ended == "finished":
                place.remove_run()
            return CellState.HAS_A_LINE

    def _make(self, cell: Cell, place: CellPlace) -> CellState:
        """Train, or go on training, and write the line of what has ended."""
        setting = self._settings[cell.task, cell.method]
        steps = setting.recipe.run.steps
        if not place.folder.finished(steps) and len(place.failures()) < self._study.attempts:
            self._say(f"{cell.name}: trains; {place.log}")
            status = self._process.run(
                [*self._program, "train", *setting.words(cell, place.folder.root)], place.log
            )
            if not place.folder.finished(steps):
                if status == 0 or status in BY_SIGNAL or self._process.asked:
                    return CellState.NOT_OVER
                self._note_failure(cell, place, status)
        if place.folder.finished(steps):
            self._write(cell, setting, place, "finished")
            place.remove_run()
            return CellState.HAS_A_LINE
        return self._write_failure(cell, setting, place)

    def _note_failure(self, cell: Cell, place: CellPlace, status: int) -> None:
        text = place.log.read_text(encoding="utf-8", errors="replace")
        why = why_it_ended(text) or f"status {status}"
        trained = any(record["step"] > 0 for record in read_metrics(place.folder))
        if status == UNUSABLE or not trained:
            raise StudyError(
                f"{cell.name} ended with status {status} before its first step, which says nothing of its method: "
                f"{why}. See {place.log}; the same command tries it again"
            )
        place.note_failure(why)

    def _write_failure(self, cell: Cell, setting: Setting, place: CellPlace) -> CellState:
        """The line of a run that has failed often enough; its folder stays."""
        failures = place.failures()
        if len(failures) < self._study.attempts:
            return CellState.FAILED_ONCE
        ended: Ending = "failed"
        if failures[-1].startswith("step "):
            ended = "collapsed"
        self._write(cell, setting, place, ended, failures[-1])
        return CellState.HAS_A_LINE

    def _write(self, cell: Cell, setting: Setting, place: CellPlace, ended: Ending, why: str = "") -> None:
        result = result_of(cell, setting.identity, place.folder, ended, why)
        append_result(self._study.results, result)
        self._say(f"{cell.name}: {ended}")


def why_it_ended(log: str) -> str:
    """The error that a log of `empg train` names: that of the trainer's guard before any other.

    >>> why_it_ended("error: trainer ended with status 78; end of trainer.log: error: step 3: 9 updates skipped")
    'step 3: 9 updates skipped'
    """
    guard = GUARD.search(log)
    if guard is not None:
        return guard.group(1)[:LONGEST]
    return (first_error(log) or "")[:LONGEST]
