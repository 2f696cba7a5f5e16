"""Charts as inline SVG: lines with bands, scatters, stacked areas, ranges. Colours come from the page's style."""

import html
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Points = Sequence[tuple[float, float]]
Format = Callable[[float], str]

LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 12.0, 34.0


class Size(NamedTuple):
    """Of a drawing, in its own units; the page scales it to the card."""

    width: float
    height: float


FULL, SMALL = Size(560.0, 260.0), Size(380.0, 175.0)
WIDTH, HEIGHT = FULL
MOST_MARKS = 40  # more of them would hide the line


@dataclass(frozen=True)
class Line:
    """One series. ``colour`` is a place in the page's palette."""

    label: str
    points: Points
    colour: int = 0
    dash: bool = False
    faint: bool = False
    marks: bool = False


@dataclass(frozen=True)
class Band:
    """A range over x, drawn behind the lines: (x, low, high)."""

    label: str
    ranges: Sequence[tuple[float, float, float]]
    colour: int = 0
    strength: float = 0.18


@dataclass(frozen=True)
class Chart:
    """A drawing and its legend: (name, place in the palette, kind of swatch)."""

    content: str
    legend: Sequence[tuple[str, int, str]] = ()
    size: Size = FULL
    hover: object = None

    def html(self) -> str:
        """The legend, where there is a choice to explain, above the svg element."""
        items = "".join(
            f'<span><i class="{kind}" style="--s:{palette(colour)}"></i>{html.escape(name)}</span>'
            for name, colour, kind in self.legend
        )
        keys = f'<div class="legend">{items}</div>' if len(self.legend) > 1 else ""
        # What the page's script shows under the pointer.
        data = f' data-hover="{html.escape(json.dumps(self.hover))}"' if self.hover else ""
        box = f'viewBox="0 0 {self.size.width:.0f} {self.size.height:.0f}"'
        return f'{keys}<svg {box} role="img"{data}>{self.content}</svg>'


def palette(colour: int) -> str:
    """A place in the page's palette as CSS; -1 is the muted grey."""
    return "var(--muted)" if colour < 0 else f"var(--c{colour})"


@dataclass
class Scale:
    """From data to pixels, with ticks at round numbers."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def scale(values: Sequence[float], start: float, end: float, *, ticks: int = 5, whole: bool = False) -> Scale:
    """A scale over the values, widened to round ticks; ``whole`` keeps the ends and ticks at integers only."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < 1e-12 * max(1.0, abs(high)):
        # A constant: a whole number between its neighbours, zero as the bottom, others around the middle.
        room = 0.5 if whole else 0.1 * abs(high)
        low, high = (low - room, high + room) if room else (0.0, 1.0)
    step = _round_step((high - low) / ticks)
    if whole:
        step = max(1.0, math.ceil(step))
        first = math.ceil(low / step)
        marks = [step * n for n in range(first, math.floor(high / step) + 1)]
        return Scale(low, high, start, end, marks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Scale(first * step, last * step, start, end, [step * n for n in range(first, last + 1)])


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))


def number(value: float) -> str:
    """A tick or value, short: 0.25, 1,200, 3e-05."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:.3g}"


def percent(value: float) -> str:
    return f"{value * 100:.3g}%"


def seconds(value: float) -> str:
    return f"{value:.3g}s"


def line_chart(
    lines: Sequence[Line],
    bands: Sequence[Band] = (),
    *,
    form: Format = number,
    y_ends: Sequence[float] = (),
    x_label: str = "step",
    size: Size = FULL,
    zero: bool = False,
) -> Chart | None:
    """Lines over the training step, with values under the pointer and, if wanted, a line at 0. None without any
    point."""
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + list(y_ends)
    ys += [value for band in bands for _, low, high in band.ranges for value in (low, high)]
    x, y = scale(xs, LEFT, size.width - RIGHT, whole=True), scale(ys, size.height - BOTTOM, TOP)
    parts = [axes(x, y, form, x_label, size=size)]
    if zero:
        parts.append(_zero(y, LEFT, size.width - RIGHT))
    for band in bands:
        upper = [f"{x(at):.1f},{y(high):.1f}" for at, _, high in band.ranges]
        lower = [f"{x(at):.1f},{y(low):.1f}" for at, low, _ in reversed(band.ranges)]
        style = f'fill="var(--c{band.colour})" opacity="{band.strength}"'
        parts.append(f'<polygon points="{" ".join(upper + lower)}" {style}/>')
    parts += [_line(line, x, y) for line in lines]
    entries = [(line.label, line.colour, "dash" if line.dash else "line") for line in lines if line.label]
    entries += [(band.label, band.colour, "band") for band in bands if band.label]
    hover = {
        "x": [x.low, x.high, LEFT, size.width - RIGHT],
        "series": [
            {
                "label": line.label,
                "colour": line.colour,
                "points": [[at, form(value)] for at, value in line.points],
            }
            for line in lines
            if line.label
        ],
    }
    return Chart("".join(parts), entries, size, hover)


def _line(line: Line, x: Scale, y: Scale) -> str:
    places = [f"{x(at):.1f},{y(value):.1f}" for at, value in line.points]
    colour = f"var(--c{line.colour})"
    look = f'class="line{" dash" if line.dash else ""}{" faint" if line.faint else ""}" stroke="{colour}"'
    drawn = f'<polyline points="{" ".join(places)}" {look}/>' if len(places) > 1 else ""
    if (line.marks and len(places) <= MOST_MARKS) or len(places) == 1:
        for place in places:
            across, down = place.split(",")
            drawn += f'<circle cx="{across}" cy="{down}" r="3.5" fill="{colour}" class="mark"/>'
    return drawn


def stacked_chart(
    labels: Sequence[str], rows: Sequence[tuple[float, Sequence[float]]], *, form: Format = seconds
) -> Chart | None:
    """Bars over the training step, stacked in the labels' order. None without rows."""
    if not rows:
        return None
    positions = [at for at, _ in rows]
    totals = [sum(values) for _, values in rows]
    width = (WIDTH - LEFT - RIGHT) / len(rows)
    x = scale(positions, LEFT + width / 2, WIDTH - RIGHT - width / 2, whole=True)
    if len(rows) == 1:
        width = 40.0
    y = scale([0.0, *totals], HEIGHT - BOTTOM, TOP)
    parts = [axes(x, y, form, "step")]
    for at, values in rows:
        below = 0.0
        for colour, value in enumerate(values):
            top, bottom = y(below + value), y(below)
            below += value
            if bottom - top > 0.05:
                box = f'x="{x(at) - width * 0.45:.2f}" y="{top:.2f}" width="{width * 0.9:.2f}"'
                parts.append(f'<rect {box} height="{bottom - top:.2f}" fill="var(--c{colour})"/>')
    hover = {
        "x": [x.low, x.high, x.start, x.end],
        "series": [
            {"label": label, "colour": place, "points": [[at, form(values[place])] for at, values in rows]}
            for place, label in enumerate(labels)
        ],
    }
    keys = [(label, place, "box") for place, label in enumerate(labels)]
    return Chart("".join(parts), keys, FULL, hover)


@dataclass(frozen=True)
class Dots:
    """A cloud of points of one colour."""

    label: str
    points: Points
    colour: int = 0


def scatter_chart(clouds: Sequence[Dots], *, x_label: str, y_label: str, diagonal: bool = False) -> Chart | None:
    """Points with both axes labelled; with the line y = x where ``diagonal``. None without any point."""
    every = [point for cloud in clouds for point in cloud.points]
    if not every:
        return None
    left = LEFT + 14
    x = scale([a for a, _ in every], left, WIDTH - RIGHT)
    y = scale([b for _, b in every], HEIGHT - BOTTOM, TOP)
    parts = [axes(x, y, number, x_label, y_label)]
    parts.append(_zero(y, left, WIDTH - RIGHT))
    if diagonal:
        low, high = max(x.low, y.low), min(x.high, y.high)
        ends = f'x1="{x(low):.1f}" y1="{y(low):.1f}" x2="{x(high):.1f}" y2="{y(high):.1f}"'
        parts.append(f'<line {ends} class="guide"/>')
    for cloud in clouds:
        dots = "".join(f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.6"/>' for a, b in cloud.points)
        parts.append(f'<g class="dots" fill="var(--c{cloud.colour})">{dots}</g>')
    shown = [(cloud.label, cloud.colour, "dot") for cloud in clouds if cloud.label and cloud.points]
    return Chart("".join(parts), shown)


def range_chart(
    rows: Sequence[tuple[str, float, float]], *, before: str, after: str, x_label: str, y_label: str
) -> Chart | None:
    """For each named row a line from its value before to its value after. None without rows."""
    if not rows:
        return None
    left = LEFT + 14
    width = (WIDTH - left - RIGHT) / len(rows)
    y = scale([0.0] + [value for _, first, last in rows for value in (first, last)], HEIGHT - BOTTOM, TOP)
    parts = [axes(None, y, number, x_label, y_label)]
    for place, (name, first, last) in enumerate(rows):
        at = left + width * (place + 0.5)
        about = html.escape(f"{name}: {number(first)} → {number(last)} ({last - first:+.3f})")
        x, start, end = f"{at:.1f}", f"{y(first):.1f}", f"{y(last):.1f}"
        area = f'x="{at - width / 2:.1f}" y="{TOP}" width="{width:.1f}" height="{HEIGHT - TOP - BOTTOM}"'
        label = f'x="{x}" y="{HEIGHT - BOTTOM + 15}" class="tick" text-anchor="middle"'
        parts.append(
            f'<g><title>{about}</title><rect {area} opacity="0"/><text {label}>{html.escape(name)}</text>'
            f'<line x1="{x}" x2="{x}" y1="{start}" y2="{end}" class="span"/>'
            f'<circle cx="{x}" cy="{start}" r="5" class="hollow" stroke="var(--muted)"/>'
            f'<circle cx="{x}" cy="{end}" r="5" fill="var(--c0)" class="mark"/></g>'
        )
    return Chart("".join(parts), [(before, -1, "ring"), (after, 0, "dot")])


@dataclass(frozen=True)
class Marks:
    """One value a bin, None where there is none; ``reach`` is drawn as a bar from low to high."""

    label: str
    values: Sequence[float | None]
    colour: int = 0
    reach: Sequence[tuple[float, float] | None] = ()


def bin_chart(
    names: Sequence[str], series: Sequence[Marks], *, x_label: str, y_label: str, ends: Sequence[float] = (0.0,)
) -> Chart | None:
    """Values over named bins, a line through neighbours, with their numbers under the pointer. The vertical axis
    holds ``ends`` too. None without any value."""
    ys = [value for marks in series for value in marks.values if value is not None]
    if not ys:
        return None
    ys += [value for marks in series for bar in marks.reach if bar for value in bar]
    left = LEFT + 14
    width = (WIDTH - left - RIGHT) / len(names)
    y = scale([*ys, *ends], HEIGHT - BOTTOM, TOP)
    places = [left + width * (place + 0.5) for place in range(len(names))]
    parts = [axes(None, y, number, x_label, y_label), _zero(y, left, WIDTH - RIGHT)]
    for name, at in zip(names, places, strict=True):
        label = f'x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" class="tick" text-anchor="middle"'
        parts.append(f"<text {label}>{html.escape(name)}</text>")
    parts += [_marks(marks, places, y) for marks in series]
    for place, name in enumerate(names):
        area = (
            f'x="{places[place] - width / 2:.1f}" y="{TOP}" width="{width:.1f}" height="{HEIGHT - TOP - BOTTOM}"'
        )
        about = html.escape(_numbers_in_words(name, series, place))
        parts.append(f'<g><title>{about}</title><rect {area} opacity="0"/></g>')
    return Chart("".join(parts), [(marks.label, marks.colour, "dot") for marks in series])


def _marks(marks: Marks, places: Sequence[float], y: Scale) -> str:
    colour = palette(marks.colour)
    drawn, before = "", None
    for at, bar in zip(places, marks.reach, strict=False):
        if bar:
            ends = f'x1="{at:.1f}" x2="{at:.1f}" y1="{y(bar[0]):.1f}" y2="{y(bar[1]):.1f}"'
            drawn += f'<line {ends} class="span"/>'
    dots = ""
    for at, value in zip(places, marks.values, strict=True):
        place = None if value is None else (at, y(value))
        if place and before:
            ends = f'x1="{before[0]:.1f}" y1="{before[1]:.1f}" x2="{place[0]:.1f}" y2="{place[1]:.1f}"'
            drawn += f'<line {ends} class="line" stroke="{colour}"/>'
        if place:
            dots += f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="4.5" fill="{colour}" class="mark"/>'
        before = place
    return drawn + dots


def _numbers_in_words(name: str, series: Sequence[Marks], place: int) -> str:
    """A bin's numbers in words."""
    lines = []
    for marks in series:
        value = marks.values[place]
        bar = marks.reach[place] if marks.reach else None
        said = "not measured" if value is None else number(value)
        said += f" ({number(bar[0])} to {number(bar[1])})" if bar else ""
        lines.append(f"{marks.label}: {said}")
    return "\n".join([name, *lines])


def _zero(y: Scale, left: float, right: float) -> str:
    """A line at 0, where it lies inside the chart."""
    if not y.low < 0 < y.high:
        return ""
    return f'<line x1="{left}" x2="{right}" y1="{y(0):.1f}" y2="{y(0):.1f}" class="zero"/>'


def axes(x: Scale | None, y: Scale, form: Format, x_label: str, y_label: str = "", *, size: Size = FULL) -> str:
    """Grid lines, tick labels and axis titles."""
    left = LEFT + (14 if y_label else 0)
    parts = []
    for tick in y.ticks:
        at = f"{y(tick):.1f}"
        parts.append(f'<line x1="{left}" x2="{size.width - RIGHT}" y1="{at}" y2="{at}" class="grid"/>')
        parts.append(
            f'<text x="{left - 7}" y="{at}" dy="0.32em" class="tick" text-anchor="end">{form(tick)}</text>'
        )
    for tick in x.ticks if x else ():
        place = f'x="{x(tick):.1f}" y="{size.height - BOTTOM + 15}"' if x else ""
        parts.append(f'<text {place} class="tick" text-anchor="middle">{number(tick)}</text>')
    centre = (left + size.width - RIGHT) / 2
    parts.append(
        f'<text x="{centre}" y="{size.height - 3}" class="title" text-anchor="middle">'
        f"{html.escape(x_label)}</text>"
    )
    if y_label:
        down = (TOP + size.height - BOTTOM) / 2
        turned = f'transform="translate(11 {down}) rotate(-90)"'
        parts.append(f'<text {turned} class="title" text-anchor="middle">{html.escape(y_label)}</text>')
    return "".join(parts)
