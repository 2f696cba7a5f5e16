"""Charts of a study: training success over the step, a few methods beside their base, with the seeds' range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from megatron_empg.report.chart import Chart
from megatron_empg.report.lines import Band, Line, calm, line_chart
from megatron_empg.report.look import MUTED
from megatron_empg.report.points import Points, Range
from megatron_empg.study.comparisons import Results
from megatron_empg.study.config import Study
from megatron_empg.study.results import RunResult
from megatron_empg.study.sheets import bases_of, results_of

TOGETHER = 3
"""Methods beside a base in one chart: the bands of more hide each other."""
CAPTION = "Success in training, mean over seeds, smoothed; shaded: from the lowest to the highest seed."


@dataclass(frozen=True)
class StudyChart:
    """A chart, and the part of its file's name that tells it from the study's others: "sokoban-dapo-1"."""

    name: str
    chart: Chart


def charts_of(study: Study, results: Results) -> Iterator[StudyChart]:
    """The charts of every task and base of which a curve is there."""
    for task in study.tasks:
        for base in bases_of(study, task):
            paired = [method for method in study.methods_of(task) if study.methods[method].base == base]
            for number, first in enumerate(range(0, len(paired), TOGETHER), start=1):
                methods = [base, *paired[first : first + TOGETHER]]
                chart = _chart(study, results, task, methods, number)
                if chart is not None:
                    yield StudyChart(f"{task}-{base}-{number}", chart)


def _chart(study: Study, results: Results, task: str, methods: Sequence[str], number: int) -> Chart | None:
    lines, bands = [], []
    for place, method in enumerate(methods):
        curves = [curve_of(result) for result in results_of(study, results, task, method)]
        middle, ranges = over_seeds([calm(curve) for curve in curves if curve])
        # The base is in each of the charts, and grey in all of them.
        colour = f"C{place - 1}"
        if not place:
            colour = MUTED
        lines.append(Line(method, middle, colour))
        bands.append(Band("", ranges, colour, 0.15))
    title = f"{task}: success in training beside {methods[0]} ({number})"
    return line_chart(title, CAPTION, lines, bands, unit="%")


def curve_of(result: RunResult) -> Points:
    """A run's training success by step, also of a run that did not finish."""
    points: Points = []
    for step, value in enumerate(result.curve, start=1):
        if value is not None:
            points.append((float(step), value))
    return points


def over_seeds(curves: Sequence[Points]) -> tuple[Points, list[Range]]:
    """The mean of the curves, and their range, at each step that a curve has."""
    values: dict[float, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            values.setdefault(step, []).append(value)
    middle: Points = []
    ranges = []
    for step in sorted(values):
        middle.append((step, fmean(values[step])))
        ranges.append(Range(step, min(values[step]), max(values[step])))
    return middle, ranges
