"""Charts over bins that are sorted by entropy, the surest first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from megatron_empg.report.chart import Chart, blank, finished
from megatron_empg.report.look import CARD, MUTED, STYLE


@dataclass(frozen=True)
class Marks:
    """A value for each bin, not a number where there is none."""

    label: str
    values: Sequence[float] | np.ndarray
    colour: str = "C0"


def bin_chart(
    title: str,
    caption: str,
    series: Sequence[Marks],
    spread: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    x_label: str,
    y_label: str,
) -> Chart:
    """Marks with lines through neighbours; a bin without a value is a gap. `spread` is drawn as a bar in each bin,
    from the one value to the other."""
    with rc_context(STYLE):
        figure, axes = blank(x_label=x_label, y_label=y_label)
        bins = name_bins(axes, len(series[0].values))
        if spread is not None:
            axes.vlines(bins, *spread, color=MUTED, linewidth=2)
        for marks in series:
            axes.plot(bins, marks.values, "o-", color=marks.colour, label=marks.label)
        return finished(title, caption, figure, (0.0,))


def change_chart(title: str, caption: str, before: Marks, after: Marks, *, x_label: str, y_label: str) -> Chart:
    """For each bin a line from its value before, a ring, to its value after, a dot."""
    with rc_context(STYLE):
        figure, axes = blank(x_label=x_label, y_label=y_label)
        bins = name_bins(axes, len(before.values))
        axes.vlines(bins, before.values, after.values, color=MUTED, linewidth=2)
        axes.plot(bins, before.values, "o", color=CARD, markeredgecolor=MUTED, label=before.label)
        axes.plot(bins, after.values, "o", color=after.colour, label=after.label)
        return finished(title, caption, figure, (0.0,))


def name_bins(axes: Axes, count: int) -> range:
    """The places of the bins on the horizontal axis."""
    axes.set_xticks(range(count), ["surest", *map(str, range(2, count)), "unsure"])
    axes.set_xlim(-0.5, count - 0.5)
    return range(count)
