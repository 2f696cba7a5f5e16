"""The report of a study: a page of tables and its charts, made of the lines alone. The same lines make the same
bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_empg.common.files import put_text
from megatron_empg.report.table.sheet import escaped
from megatron_empg.report.templates import render
from megatron_empg.study.cells import cells_of
from megatron_empg.study.comparisons import MethodComparison, Results, comparisons_of
from megatron_empg.study.config import Study
from megatron_empg.study.curves import StudyChart, charts_of
from megatron_empg.study.errors import StudyError
from megatron_empg.study.results import RunResult, read_results
from megatron_empg.study.sheets import pairs_sheet, power_sheet, spending_sheet, success_sheet

HOW = (
    "Success on the same fixed questions before the first step and behind the last one. A difference is method "
    "less base, by the same seeds and questions; in brackets its interval of 95%, by a bootstrap over seeds and "
    "questions. p is two-sided, by the same bootstrap, with Holm's correction over all {count} comparisons of "
    "this page. Runs that collapsed or failed have no success, and are counted beside it."
)


def write_report(study: Study) -> list[Path]:
    """Write the page and its charts beside the results; their paths, the page first.

    Raises StudyError where there is no result, or the lines of a task and method are of several runs.
    """
    results = _results(study)
    page = study.results.with_suffix(".md")
    charts = list(charts_of(study, results))
    written = [page]
    for one in charts:
        path = chart_path(page, one)
        put_text(path, render("image.svg.j2", chart=one.chart, name=one.chart.title))
        written.append(path)
    put_text(page, page_of(study, results, [(one, chart_path(page, one).name) for one in charts]))
    return written


def chart_path(page: Path, one: StudyChart) -> Path:
    """Where a chart lies: `NAME-TASK-BASE-1.svg` beside the page `NAME.md`."""
    return page.with_name(f"{page.stem}-{one.name}.svg")


def _results(study: Study) -> Results:
    """The lines of the study's own cells, in its order."""
    found = read_results(study.results)
    results = {cell: found[cell] for cell in cells_of(study) if cell in found}
    if not results:
        raise StudyError(f"{study.results} has no line of this study yet; `empg study FILE` makes its runs")
    identities: dict[tuple[str, str], str] = {}
    for cell, result in results.items():
        first = identities.setdefault((cell.task, cell.method), result.identity)
        if first != result.identity:
            raise StudyError(
                f"{study.results}: the lines of task {cell.task}, method {cell.method} are of two runs, {first} "
                f"and {result.identity}; seeds of one run are compared: take the lines of one out"
            )
    return results


def page_of(study: Study, results: Results, charts: Sequence[tuple[StudyChart, str]]) -> str:
    """The page, with the names of its charts' files."""
    comparisons = comparisons_of(study, results)
    tested = sum(one.difference.p_value is not None for one in comparisons)
    wanted = len(cells_of(study))
    parts = [
        f"# Study: {study.results.stem}",
        study.stage,
        f"{len(results)} of {wanted} runs have ended.",
        HOW.format(count=tested),
    ]
    for task in study.tasks:
        if any(cell.task == task for cell in results):
            parts += _task_parts(study, results, comparisons, task)
            parts += [f"![{one.chart.title}]({name})" for one, name in charts if one.name.startswith(f"{task}-")]
    power = power_sheet(study, results)
    if power.rows:
        parts += ["## Power", power.markdown()]
    parts += _unfinished(list(results.values()))
    commits = sorted({result.commit for result in results.values()})
    parts.append(f"Commits: {', '.join(commits)}.")
    return "\n\n".join(parts) + "\n"


def _task_parts(study: Study, results: Results, comparisons: Sequence[MethodComparison], task: str) -> list[str]:
    """A task's heading and tables."""
    parts = [f"## {task}", success_sheet(study, results, comparisons, task).markdown()]
    pairs = pairs_sheet(study, results, comparisons, task)
    if pairs.rows:
        parts.append(pairs.markdown())
    return [*parts, spending_sheet(study, results, task).markdown()]


def _unfinished(results: Sequence[RunResult]) -> list[str]:
    """Which runs did not finish, and why."""
    lines = []
    for result in results:
        if result.ended != "finished":
            why = " ".join(result.why.split())
            lines.append(f"- {escaped(result.cell.name)} {result.ended} after step {result.steps}: {escaped(why)}")
    if not lines:
        return []
    return ["## Runs that did not finish", "\n".join(lines)]
