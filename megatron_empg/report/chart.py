"""What a chart of the report is: a matplotlib figure with a title and a caption, and its SVG within the page."""

import re
import warnings
from dataclasses import dataclass
from io import StringIO
from math import ceil
from typing import NamedTuple
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from megatron_empg.report.look import COLOURS, MUTED, STYLE


class Size(NamedTuple):
    """The size of a chart in units of its SVG; the page scales it to the card."""

    width: float
    height: float


FULL, SMALL = Size(560, 260), Size(380, 175)
UNITS_PER_INCH = 72
"""Of matplotlib's SVG."""
LEFT, RIGHT, BOTTOM, TOP = 58, 14, 38, 10
"""Margins around the axes. They are fixed, as matplotlib's layout engines draw everything twice to find them."""
LETTER, SWATCH, ROW = 5.7, 36, 17
"""In a legend: widths of a letter on average and of all else in an entry; height of a row."""
NAMESPACE, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
NAMES = {colour.light: name for name, colour in COLOURS.items()}


@dataclass(frozen=True)
class Chart:
    """A drawing, its title, and the caption that says what it shows."""

    title: str
    caption: str
    figure: Figure


def blank(
    size: Size = FULL, *, x_label: str = "step", y_label: str = "", unit: str = "", left: float = LEFT
) -> tuple[Figure, Axes]:
    """An empty figure and its axes. `unit` stands behind each number of the vertical axis; with ``%`` shares from
    0 to 1 are shown in percent. `left` is the margin for these numbers; a label adds its own."""
    width, height = size
    figure = Figure(figsize=(width / UNITS_PER_INCH, height / UNITS_PER_INCH))
    left += 14 if y_label else 0
    figure.subplots_adjust(left / width, BOTTOM / height, 1 - RIGHT / width, 1 - TOP / height)
    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    if unit == "%":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.yaxis.set_major_formatter(f"{{x:,g}}{unit}")
    return figure, axes


def finished(title: str, caption: str, figure: Figure, y_ends: tuple[float, ...] = ()) -> Chart:
    """The chart of what was drawn. It gets a legend where there is a choice to explain, a vertical axis that holds
    `y_ends` too (up to 1 where nothing but 0 is drawn), and a line at 0 where there is more on both sides."""
    (axes,) = figure.axes
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        width, height = figure.get_size_inches() * UNITS_PER_INCH
        rows = ceil((SWATCH * len(labels) + LETTER * len("".join(labels))) / width)
        figure.subplots_adjust(top=1 - (TOP + ROW * rows) / height)
        figure.legend(handles, labels, loc="upper left", ncols=ceil(len(labels) / rows))
    if axes.dataLim.y0 == axes.dataLim.y1 == 0:
        y_ends = (*y_ends, 1.0)
    axes.update_datalim([(axes.dataLim.x0, end) for end in y_ends])
    axes.autoscale_view(scalex=False)
    low, high = axes.get_ylim()
    if low < 0 < high:
        axes.axhline(0, color=MUTED, linestyle=":", linewidth=1)
    return Chart(title, caption, figure)


def svg(chart: Chart) -> str:
    """The chart as an element of the page, named for screen readers. The same chart is the same text."""
    drawn = _drawn(chart)
    root = ElementTree.fromstring(drawn)
    for name in ("metadata", "defs"):  # the first of these holds rules for the elements of the whole page
        root.remove(root.findall(NAMESPACE + name)[0])
    referred = set(re.findall(r"#(\w+)", drawn))
    for element in root.iter():
        _fit_into_page(element, referred)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": chart.title}
    return ElementTree.tostring(root, encoding="unicode")


def _drawn(chart: Chart) -> str:
    text = StringIO()
    # Ids of clips and markers are hashes with this salt, so that no two charts of the page share one.
    with rc_context({**STYLE, "svg.hashsalt": chart.title}), warnings.catch_warnings():
        # The reader's browser has its own fonts for the letters that this one lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        chart.figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _fit_into_page(element: ElementTree.Element, referred: set[str]) -> None:
    """Make an element one of HTML: without namespaces, without the ids that nothing refers to (other charts have
    the same ones), in hundredths of a unit, and in the page's colours.

    A colour becomes the variable of its name, which the page sets anew in the dark. So matplotlib draws once, in
    the light colours, and the reader's browser chooses.
    """
    element.tag = element.tag.removeprefix(NAMESPACE)
    if element.get("id") not in referred:
        element.attrib.pop("id", None)
    if LINK in element.attrib:
        element.set("href", element.attrib.pop(LINK))
    for name in ("d", "x", "y", "transform"):
        if name in element.attrib:
            element.set(name, re.sub(r"(\.\d\d)\d+", r"\1", element.attrib[name]))
    if "style" in element.attrib:
        element.set("style", re.sub("#[0-9a-f]{6}", _variable, element.attrib["style"]))


def _variable(colour: re.Match[str]) -> str:
    """The CSS variable of a colour; one that is not of the page stays as it is."""
    if colour[0] not in NAMES:
        return colour[0]
    return f"var(--{NAMES[colour[0]]})"
