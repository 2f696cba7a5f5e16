"""The results of a study: one JSON line per run that has ended, in any way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from megatron_empg.common.jsonl import append_line, read_lines
from megatron_empg.study.cells import Cell, Settings
from megatron_empg.study.errors import StudyError

Ending = Literal["finished", "collapsed", "failed"]


@dataclass(frozen=True)
class RunResult:
    """A run that has ended. Of one that did not finish, what is missing is empty.

    Example: ``result.answered_after["test_id/sampled"]`` is "0110…".
    """

    task: str
    method: str
    seed: int
    identity: str
    """What was run but for its seed, by `study.identity`."""
    ended: Ending
    why: str = ""
    """The error of a run that did not finish."""
    before: dict[str, float] = field(default_factory=dict)
    """Success by series before the first step, a share."""
    after: dict[str, float] = field(default_factory=dict)
    """The same behind the last step."""
    answered_before: dict[str, str] = field(default_factory=dict)
    """By series a digit for each question in the order asked: 1 where it was answered."""
    answered_after: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    """Training steps that were logged."""
    episodes: int = 0
    """Episodes that were played to train on, those that a filter dropped among them."""
    seconds: int = 0
    """Seconds of steps and evaluations, without the start of engines."""
    diagnostics: dict[str, float] = field(default_factory=dict)
    """Metrics of the last step that are worth pairing."""
    curve: list[float | None] = field(default_factory=list)
    """Training success, sampled, of each step."""
    finished: str = ""
    """When the line was written, UTC."""
    commit: str = ""
    """The code's at each start of the run."""

    @property
    def cell(self) -> Cell:
        """The run's place in its study."""
        return Cell(self.task, self.method, self.seed)


def read_results(path: Path) -> dict[Cell, RunResult]:
    """The results of a file; none where it is missing. Raises StudyError for a line that is no run's, and for two
    lines of one run."""
    found: dict[Cell, RunResult] = {}
    for number, line in enumerate(read_lines(path), start=1):
        try:
            result = RunResult(**line)
        except TypeError as error:
            raise StudyError(
                f"{path}, line {number}: it is not the line of a run ({error}); take it out"
            ) from None
        if result.cell in found:
            raise StudyError(f"{path}, line {number}: {result.cell.name} has a line already; take one of them out")
        found[result.cell] = result
    return found


def append_result(path: Path, result: RunResult) -> None:
    """Add a line and bring it to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, asdict(result))


def check_identities(path: Path, settings: Settings, results: dict[Cell, RunResult]) -> None:
    """Raise StudyError for a line that has a cell's name and was another run."""
    for cell, result in results.items():
        setting = settings.get((cell.task, cell.method))
        if setting is not None and setting.identity != result.identity:
            raise StudyError(
                f"{path}: the line of {cell.name} is of another run (identity {result.identity}, now "
                f"{setting.identity}): keys, model or data have changed since. Take the line out, or give the "
                "study another `results`"
            )


def finished_of(results: Sequence[RunResult]) -> list[RunResult]:
    """Those that came to their end."""
    return [result for result in results if result.ended == "finished"]
