"""The look of the page and of its charts: colours in light and dark, and matplotlib's settings."""

from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_params_from_file


class Colour(NamedTuple):
    """One of the page's colours. Example: ``Colour("#fdfdfb", "#1b1b18")``."""

    light: str
    dark: str


COLOURS = {
    "page": Colour("#f6f5f1", "#121210"),
    "card": Colour("#fdfdfb", "#1b1b18"),
    "ink": Colour("#16150f", "#f3f2ec"),
    "soft": Colour("#55534b", "#c2c0b5"),
    "muted": Colour("#8d8a7f", "#8f8c81"),
    "grid": Colour("#e6e4dc", "#2d2c28"),
    "edge": Colour("#e0ded5", "#2d2c28"),
    "blue": Colour("#2a78d6", "#4a93ea"),
    "orange": Colour("#e0622c", "#e0703d"),
    "green": Colour("#129b72", "#22a67c"),
    "violet": Colour("#6250c4", "#988bee"),
    "yellow": Colour("#c99106", "#cf9a1c"),
    "pink": Colour("#d5619a", "#d9699f"),
    "strong-blue": Colour("#0f4c99", "#a9c9ee"),
    "middle-blue": Colour("#4f97e6", "#4f97e6"),
    "pale-blue": Colour("#a9c9ee", "#2a5c9c"),
    "warm": Colour("#f08a24", "#e8862a"),
}
"""By name, which is also that of the CSS variable. Every light one is unlike the others: charts are drawn in
the light colours, which are then known by them."""

CARD, MUTED = COLOURS["card"].light, COLOURS["muted"].light
BLUES = tuple(COLOURS[name].light for name in ("strong-blue", "middle-blue", "pale-blue"))
"""Shades in an order."""
STYLE = rc_params_from_file(Path(__file__).with_name("charts.mplstyle"), use_default_template=False)
"""Matplotlib's settings while a chart is made and while it is written."""
