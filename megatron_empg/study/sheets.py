"""The tables of a study's report, shaped as the papers': methods down, series across."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from megatron_empg.report.table.sheet import Sheet
from megatron_empg.study.cells import Cell
from megatron_empg.study.comparisons import MethodComparison, Results
from megatron_empg.study.config import Study
from megatron_empg.study.power import seeds_needed, spread_of
from megatron_empg.study.results import RunResult, finished_of

NOTHING = "–"
POINTS = (1, 2, 5)
"""Differences, in points of success, whose seeds are counted."""
LAST_SHARE = 0.25
"""The share of the steps over whose training success a method is chosen."""


def results_of(study: Study, results: Results, task: str, method: str) -> list[RunResult]:
    """The results of a task and method, in the order of the seeds."""
    found = []
    for seed in study.seeds:
        result = results.get(Cell(task, method, seed))
        if result is not None:
            found.append(result)
    return found


def success_sheet(study: Study, results: Results, comparisons: Sequence[MethodComparison], task: str) -> Sheet:
    """Success of each method before and after, and its difference to its base."""
    series = series_there(study, results, task)
    headings = ["method", "base"]
    for name in series:
        headings += [f"{name}, before", "after", "difference", "p, corrected"]
    headings += ["seeds", "collapsed", "failed"]
    by_place = _by_place(comparisons, task)
    rows = []
    for method in study.methods_of(task):
        ours = results_of(study, results, task, method)
        row = [method, study.methods[method].base or NOTHING]
        for name in series:
            row += _success_cells(finished_of(ours), name)
            row += _difference_cells(by_place.get((method, study.methods[method].base, name)))
        rows.append([*row, *_ending_cells(study, ours)])
    return Sheet(f"{task}: success in percent, differences in points", headings, rows, frozenset({0, 1}))


def pairs_sheet(study: Study, results: Results, comparisons: Sequence[MethodComparison], task: str) -> Sheet:
    """The differences of the study's further pairs."""
    series = series_there(study, results, task)
    headings = ["method", "base"]
    for name in series:
        headings += [f"{name}, difference", "p, corrected"]
    by_place = _by_place(comparisons, task)
    rows = []
    for method, base in study.pairs_of(task):
        if base != study.methods[method].base:
            row = [method, base]
            for name in series:
                row += _difference_cells(by_place.get((method, base, name)))
            rows.append(row)
    return Sheet(f"{task}: further pairs, differences in points", headings, rows, frozenset({0, 1}))


def _by_place(
    comparisons: Sequence[MethodComparison], task: str
) -> dict[tuple[str, str | None, str], MethodComparison]:
    """A task's comparisons by method, base and series."""
    return {(one.method, one.base, one.series): one for one in comparisons if one.task == task}


def series_there(study: Study, results: Results, task: str) -> list[str]:
    """The series of the study that a run of the task was evaluated on."""
    there: set[str] = set()
    for cell, result in results.items():
        if cell.task == task:
            there |= set(result.before)
    return [series for series in study.series if series in there]


def _success_cells(finished: Sequence[RunResult], series: str) -> list[str]:
    if not finished:
        return [NOTHING, NOTHING]
    before = mean(result.before[series] for result in finished)
    after = mean(result.after[series] for result in finished)
    return [f"{100 * before:.1f}", f"{100 * after:.1f}"]


def _difference_cells(compared: MethodComparison | None) -> list[str]:
    """The difference with its interval, and the corrected p-value."""
    if compared is None:
        return [NOTHING, NOTHING]
    difference = compared.difference
    told = f"{100 * difference.mean:+.1f}"
    if difference.interval is None or compared.corrected is None:
        return [told, NOTHING]
    interval = f"[{100 * difference.interval.low:+.1f}, {100 * difference.interval.high:+.1f}]"
    return [f"{told} {interval}", f"{compared.corrected:.3f}"]


def _ending_cells(study: Study, ours: Sequence[RunResult]) -> list[str]:
    """How many of the seeds finished, and how many did not."""
    endings = [result.ended for result in ours]
    finished = f"{endings.count('finished')} of {len(study.seeds)}"
    return [finished, str(endings.count("collapsed")), str(endings.count("failed"))]


def spending_sheet(study: Study, results: Results, task: str) -> Sheet:
    """What the finished runs of each method were given, what they measured at their last step, and the training
    success that a method is chosen by."""
    names = diagnostics_there(results, task)
    headings = [
        "method",
        "steps",
        "episodes played",
        "minutes",
        f"{study.choose_on} success, last quarter",
        *names,
    ]
    rows = []
    for method in study.methods_of(task):
        finished = finished_of(results_of(study, results, task, method))
        if finished:
            rows.append([method, *_spending_cells(finished), *_diagnostic_cells(finished, names)])
    return Sheet(f"{task}: means over finished seeds", headings, rows)


def _spending_cells(finished: Sequence[RunResult]) -> list[str]:
    return [
        f"{mean(result.steps for result in finished):.0f}",
        f"{mean(result.episodes for result in finished):.0f}",
        f"{mean(result.seconds for result in finished) / 60:.1f}",
        _percent(last_success(finished)),
    ]


def last_success(finished: Sequence[RunResult]) -> float | None:
    """Mean training success over the last steps of all these runs; None where none was logged."""
    values = []
    for result in finished:
        first = len(result.curve) - max(1, round(LAST_SHARE * len(result.curve)))
        values += [value for value in result.curve[first:] if value is not None]
    if not values:
        return None
    return mean(values)


def _percent(share: float | None) -> str:
    if share is None:
        return NOTHING
    return f"{100 * share:.1f}"


def diagnostics_there(results: Results, task: str) -> list[str]:
    """The metrics of last steps that a finished run of the task has, in the order of their lines."""
    names: dict[str, None] = {}
    for cell, result in results.items():
        if cell.task == task and result.ended == "finished":
            names |= dict.fromkeys(result.diagnostics)
    return sorted(names)


def _diagnostic_cells(finished: Sequence[RunResult], names: Sequence[str]) -> list[str]:
    cells = []
    for name in names:
        values = []
        for result in finished:
            if name in result.diagnostics:
                values.append(result.diagnostics[name])
        if values:
            cells.append(f"{mean(values):.3g}")
        else:
            cells.append(NOTHING)
    return cells


def power_sheet(study: Study, results: Results) -> Sheet:
    """How many seeds would find a difference, by the spread of each base's seeds."""
    headings = ["task", "base", "series", "seeds", "spread"]
    headings += [f"seeds for {points} points" for points in POINTS]
    rows = []
    for task in study.tasks:
        for base in bases_of(study, task):
            finished = finished_of(results_of(study, results, task, base))
            for series in series_there(study, results, task):
                spread = spread_of([result.after[series] for result in finished])
                if spread is not None:
                    told = [task, base, series, str(len(finished)), f"{100 * spread:.1f}"]
                    rows.append([*told, *_seeds_cells(spread)])
    return Sheet("Seeds that find a difference four times in five", headings, rows, frozenset({0, 1, 2}))


def _seeds_cells(spread: float) -> list[str]:
    cells = []
    for points in POINTS:
        seeds = seeds_needed(points / 100, spread)
        if seeds is None:
            cells.append(NOTHING)
        else:
            cells.append(str(seeds))
    return cells


def bases_of(study: Study, task: str) -> list[str]:
    """The methods of a task that others are paired with, each once."""
    bases: dict[str, None] = {}
    for method in study.methods_of(task):
        base = study.methods[method].base
        if base is not None:
            bases[base] = None
    return list(bases)
