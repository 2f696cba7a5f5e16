"""The timeline of a step: a row for each of its slowest episodes, turn by turn, in seconds of the rollout."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib import rc_context

from megatron_empg.report.chart import Chart, Size, blank, finished
from megatron_empg.report.look import MUTED, STYLE
from megatron_empg.run.timeline import Span, StepTimeline

TITLE = "When the slowest episodes did what"
WIDTH, ROW, BAR = 1120, 15, 10
NAMES, MARGINS = 170, 61
"""Width of the episodes' names; height of legend and axis."""
LONGEST_NAME = 26
NARROWEST = 0.0006
"""Of the whole time, so that what was short is still seen."""


class Bar(NamedTuple):
    """A stretch of time in a row."""

    row: int
    span: Span


def timeline_chart(timeline: StepTimeline) -> Chart:
    """All rows, slowest first."""
    episodes = timeline.slowest
    kinds: dict[str, list[Bar]] = {"engine generates": [], "environment acts": [], "neither": []}
    for row, episode in enumerate(episodes):
        kinds["neither"].append(Bar(row, episode.whole))
        kinds["engine generates"] += [Bar(row, turn.generation) for turn in episode.turns]
        acted = [episode.opening, *(turn.environment for turn in episode.turns)]
        kinds["environment acts"] += [Bar(row, span) for span in acted if span is not None]
    end = max([timeline.seconds, *(episode.whole.end for episode in episodes)]) or 1.0
    with rc_context(STYLE):
        figure, axes = blank(Size(WIDTH, MARGINS + ROW * len(episodes)), x_label="seconds", left=NAMES)
        for (label, bars), colour in zip(kinds.items(), ("C0", "C1", MUTED), strict=True):
            across, down = segments(bars, NARROWEST * end)
            (drawn,) = axes.plot(across, down, color=colour, linewidth=BAR, solid_capstyle="butt", label=label)
            if label == "neither":  # it is behind the others
                drawn.set(alpha=0.3, zorder=1)
        axes.set(xlim=(0, end), ylim=(len(episodes) - 0.5, -0.5))
        axes.set_yticks(range(len(episodes)), [short(episode.task_id) for episode in episodes])
        for name, episode in zip(axes.get_yticklabels(), episodes, strict=True):
            if episode.outcome == "error":
                name.set_color("C1")
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        return finished(TITLE, _caption(timeline), figure)


def segments(bars: list[Bar], narrowest: float) -> tuple[list[float], list[float]]:
    """The bars as one line with gaps, which is far smaller in a page than a shape for each: their seconds, their
    rows."""
    across: list[float] = []
    down: list[float] = []
    for row, span in bars:
        across += [span.start, max(span.end, span.start + narrowest), float("nan")]
        down += [row] * 3
    return across, down


def short(name: str) -> str:
    """A name on one line; what cannot be printed is a question mark, as XML has no place for it."""
    if len(name) > LONGEST_NAME:
        name = name[: LONGEST_NAME - 1] + "…"
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _caption(timeline: StepTimeline) -> str:
    rows, played, tail = len(timeline.slowest), timeline.played, ""
    shown = f"The {rows} slowest of {played} episodes" if rows < played else f"All {rows} episodes"
    if timeline.slowest and timeline.median:
        ratio = timeline.slowest[0].whole.seconds / timeline.median
        tail = f"; the slowest took {ratio:.1f} times the median of {timeline.median:.1f} s"
    return (
        f"{shown} of step {timeline.step}, in seconds since its rollout began{tail}. Rows that end late hold the "
        "batch: long orange is a slow tool, long blue a slow engine or long turns. An orange name is that of an "
        "episode that ended by an error."
    )
