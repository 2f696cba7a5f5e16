"""The look of the page and of its charts: colours in light and dark, and matplotlib's settings."""

from typing import Any, NamedTuple

from matplotlib import cycler


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

CARD, SOFT, MUTED, GRID = (COLOURS[name].light for name in ("card", "soft", "muted", "grid"))
BLUES = tuple(COLOURS[name].light for name in ("strong-blue", "middle-blue", "pale-blue"))
"""Shades in an order."""
CYCLE = tuple(COLOURS[name].light for name in ("blue", "orange", "green", "violet", "yellow", "pink", "muted"))
"""Matplotlib's ``C0`` to ``C6``."""

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's own font
    "text.parse_math": False,  # names of tasks may hold dollars
    "path.simplify": False,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; it is wide, so that other fonts fit its places
    "font.size": 10.5,
    "text.color": SOFT,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.prop_cycle": cycler(color=CYCLE),
    "axes.labelcolor": SOFT,
    "axes.edgecolor": GRID,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.autolimit_mode": "round_numbers",
    "axes.xmargin": 0,
    "axes.ymargin": 0,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "xtick.color": MUTED,
    "xtick.major.size": 0,
    "xtick.major.pad": 6,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "lines.markersize": 8,
    "lines.markeredgecolor": CARD,
    "lines.markeredgewidth": 1.5,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.handlelength": 1.7,
    "legend.columnspacing": 1.5,
}
