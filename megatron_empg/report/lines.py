"""Charts of lines over the training step."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from megatron_empg.report.chart import FULL, Chart, Size, blank, finished
from megatron_empg.report.look import STYLE
from megatron_empg.report.points import Points, Range, smooth, thin

MOST_MARKS = 40
"""More of them would hide the line."""
SHORT = 8
"""Measurements; a shorter series is drawn as it is."""
ROOM = 0.02
"""At either end of the horizontal axis, of its length."""


@dataclass(frozen=True)
class Line:
    """One series. Without a label it is not in the legend."""

    label: str
    points: Points
    colour: str = "C0"
    dash: bool = False
    faint: bool = False
    marks: bool = False


@dataclass(frozen=True)
class Band:
    """Ranges over the step, drawn behind the lines."""

    label: str
    ranges: Sequence[Range]
    colour: str = "C0"
    strength: float = 0.2


def line_chart(
    title: str,
    caption: str,
    lines: Sequence[Line],
    bands: Sequence[Band] = (),
    *,
    unit: str = "",
    y_ends: tuple[float, ...] = (0.0,),
    size: Size = FULL,
) -> Chart | None:
    """The vertical axis holds `y_ends` too. None without any point."""
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    with rc_context(STYLE):
        figure, axes = blank(size, unit=unit)
        for band in bands:
            _draw_band(axes, band)
        for line in lines:
            _draw_line(axes, line)
        by_step(axes)
        return finished(title, caption, figure, y_ends)


def _draw_band(axes: Axes, band: Band) -> None:
    if len(band.ranges) < 2:
        return
    steps, lows, highs = zip(*band.ranges, strict=True)
    axes.fill_between(steps, lows, highs, color=band.colour, alpha=band.strength, linewidth=0, label=band.label)


def _draw_line(axes: Axes, line: Line) -> None:
    steps, values = zip(*line.points, strict=True)
    (drawn,) = axes.plot(steps, values, color=line.colour, label=line.label, clip_on=False)
    if line.dash:
        drawn.set_linestyle("--")
    if line.faint:
        drawn.set(alpha=0.35, linewidth=1.2)
    if len(steps) == 1 or (line.marks and len(steps) <= MOST_MARKS):
        drawn.set_marker("o")


def by_step(axes: Axes) -> None:
    """Steps are whole numbers, and their axis ends where they do."""
    first, last = axes.dataLim.intervalx
    room = ROOM * (last - first) or 0.5
    axes.set_xlim(first - room, last + room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def smoothed(label: str, points: Points, colour: str = "C0") -> list[Line]:
    """A series as it is, faint, under its moving mean; a short series only as it is."""
    points = thin(points)
    if len(points) < SHORT:
        return [Line(label, points, colour)]
    return [Line("", points, colour, faint=True), Line(label, calm(points), colour)]


def calm(points: Points) -> Points:
    """A thinned series' moving mean; a short series as it is."""
    points = thin(points)
    if len(points) < SHORT:
        return points
    return smooth(points, max(3, len(points) // 10))
