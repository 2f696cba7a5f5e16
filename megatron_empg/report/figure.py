"""What a figure of the report is, and the lines that most of them are made of."""

from dataclasses import dataclass

from megatron_empg.report import svg
from megatron_empg.report.data import Points, smooth, thin

SHORT = 8
"""Measurements; a shorter series is drawn as it is."""


@dataclass(frozen=True)
class Figure:
    """A chart, its title and what it shows."""

    title: str
    caption: str
    chart: svg.Chart


def figure(title: str, caption: str, chart: svg.Chart | None) -> Figure | None:
    """The figure of a chart; None where there was nothing to draw."""
    return Figure(title, caption, chart) if chart else None


def smoothed(label: str, points: Points, colour: int) -> list[svg.Line]:
    """A series as it is, faint, under its moving mean; a short series only as it is."""
    points = thin(points)
    if len(points) < SHORT:
        return [svg.Line(label, points, colour)]
    return [svg.Line("", points, colour, faint=True), svg.Line(label, calm(points), colour)]


def calm(points: Points) -> Points:
    """A thinned series' moving mean; a short series as it is."""
    points = thin(points)
    if len(points) < SHORT:
        return points
    return smooth(points, max(3, len(points) // 10))
