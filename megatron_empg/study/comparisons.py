"""Every method beside its base: same task, same seeds, same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from megatron_empg.study.bootstrap import Differences, PairedDifference, paired_difference
from megatron_empg.study.cells import Cell
from megatron_empg.study.config import Study
from megatron_empg.study.errors import StudyError
from megatron_empg.study.holm import holm
from megatron_empg.study.results import RunResult

Results = dict[Cell, RunResult]


@dataclass(frozen=True)
class MethodComparison:
    """A method against its base on one task and series.

    Example: ``found.difference.mean`` is 0.03 for 3 points.
    """

    task: str
    method: str
    base: str
    series: str
    difference: PairedDifference
    corrected: float | None = None
    """The p-value by Holm's correction over all comparisons of the study; None without one."""


def comparisons_of(study: Study, results: Results) -> list[MethodComparison]:
    """The comparisons of which a seed has finished with the method and with its base.

    The correction is over all of them that have a p-value, on every task and series.
    """
    found = []
    for task in study.tasks:
        for method, base in study.pairs_of(task):
            for series in study.series:
                differences = differences_of(results, task, method, base, series, study.seeds)
                if differences is not None:
                    difference = paired_difference(differences)
                    found.append(MethodComparison(task, method, base, series, difference))
    return _corrected(found)


def _corrected(found: Sequence[MethodComparison]) -> list[MethodComparison]:
    p_values = [one.difference.p_value for one in found if one.difference.p_value is not None]
    corrected = iter(holm(p_values))
    told = []
    for one in found:
        if one.difference.p_value is None:
            told.append(one)
        else:
            told.append(replace(one, corrected=next(corrected)))
    return told


def differences_of(
    results: Results, task: str, method: str, base: str, series: str, seeds: Sequence[int]
) -> Differences | None:
    """Method less base, [seeds, questions], of the seeds that finished with both; None without one.

    Raises StudyError where both were asked unlike numbers of questions.
    """
    rows: list[Differences] = []
    for seed in seeds:
        ours = answers_of(results, Cell(task, method, seed), series)
        theirs = answers_of(results, Cell(task, base, seed), series)
        if ours is not None and theirs is not None:
            _check_questions(rows, ours, theirs, f"task {task}, {method} and {base}, seed {seed}, {series}")
            rows.append(ours - theirs)
    if not rows:
        return None
    return np.stack(rows)


def answers_of(results: Results, cell: Cell, series: str) -> Differences | None:
    """1 for each question that a finished run answered behind its last step, and 0; None where there is no such
    run or series."""
    result = results.get(cell)
    if result is None or result.ended != "finished" or series not in result.answered_after:
        return None
    digits = result.answered_after[series].encode("ascii")
    return (np.frombuffer(digits, dtype=np.uint8) - ord("0")).astype(np.float64)


def _check_questions(rows: Sequence[Differences], ours: Differences, theirs: Differences, where: str) -> None:
    asked = {len(row) for row in (*rows, ours, theirs)}
    if len(asked) > 1:
        raise StudyError(
            f"{where}: {sorted(asked)} questions were asked; runs are compared on the same ones: take the lines "
            "of one evaluation out"
        )
