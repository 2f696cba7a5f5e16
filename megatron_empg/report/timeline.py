"""The timeline of a step: a row for each of its slowest episodes, turn by turn, in seconds of the rollout."""

from __future__ import annotations

import html
from collections.abc import Iterator

from megatron_empg.report import svg
from megatron_empg.report.figure import Figure
from megatron_empg.run.timeline import EpisodeTimes, Span, StepTimeline

WIDTH = 1120.0
LABELS = 170.0
"""Width of the episodes' names."""
ROW = 15.0
BAR = 10.0
TOP, BOTTOM, RIGHT = 8.0, 34.0, 14.0
GENERATION, ENVIRONMENT, BETWEEN = 0, 1, -1
"""Places in the page's palette."""
LONGEST_NAME = 26
NARROWEST = 0.6
"""Of a bar, so that what was short is still seen."""


def timeline_figure(timeline: StepTimeline) -> Figure:
    """All rows, slowest first."""
    rows = len(timeline.slowest)
    size = svg.Size(WIDTH, TOP + ROW * rows + BOTTOM)
    ends = [timeline.seconds, *(episode.whole.end for episode in timeline.slowest)]
    x = svg.scale([0.0, max(ends)], LABELS, WIDTH - RIGHT, ticks=10)
    content = "".join([_axis(x, size), *_rows(timeline, x)])
    legend = [
        ("engine generates", GENERATION, "box"),
        ("environment acts", ENVIRONMENT, "box"),
        ("neither", BETWEEN, "box"),
    ]
    return Figure("When the slowest episodes did what", _caption(timeline), svg.Chart(content, legend, size))


def _caption(timeline: StepTimeline) -> str:
    rows, played, tail = len(timeline.slowest), timeline.played, ""
    shown = f"The {rows} slowest of {played} episodes" if rows < played else f"All {rows} episodes"
    if timeline.slowest and timeline.median:
        ratio = timeline.slowest[0].whole.seconds / timeline.median
        tail = f"; the slowest took {ratio:.1f} times the median of {timeline.median:.1f} s"
    return (
        f"{shown} of step {timeline.step}, in seconds since its rollout began{tail}. Rows that end late hold the "
        "batch: long orange is a slow tool, long blue a slow engine or long turns."
    )


def _axis(x: svg.Scale, size: svg.Size) -> str:
    parts = []
    for tick in x.ticks:
        at = f"{x(tick):.1f}"
        parts.append(f'<line x1="{at}" x2="{at}" y1="{TOP}" y2="{size.height - BOTTOM}" class="grid"/>')
        place = f'x="{at}" y="{size.height - BOTTOM + 15}"'
        parts.append(f'<text {place} class="tick" text-anchor="middle">{svg.number(tick)}</text>')
    centre = (LABELS + size.width - RIGHT) / 2
    parts.append(f'<text x="{centre}" y="{size.height - 3}" class="title" text-anchor="middle">seconds</text>')
    return "".join(parts)


def _rows(timeline: StepTimeline, x: svg.Scale) -> Iterator[str]:
    for number, episode in enumerate(timeline.slowest):
        top = TOP + ROW * number
        yield f"<g>{_name(episode, top)}{_bars(episode, x, top + (ROW - BAR) / 2)}</g>"


def _name(episode: EpisodeTimes, top: float) -> str:
    name = episode.task_id if len(episode.task_id) <= LONGEST_NAME else episode.task_id[: LONGEST_NAME - 1] + "…"
    about = f"{episode.task_id}: {episode.outcome}, {len(episode.turns)} turns in {episode.whole.seconds:.2f} s"
    if episode.engine:
        about += f" on {episode.engine}"
    style = ' style="fill:var(--bad)"' if episode.outcome == "error" else ""
    return (
        f'<text x="{LABELS - 8}" y="{top + ROW / 2}" dy="0.32em" class="tick" text-anchor="end"{style}>'
        f"{html.escape(name)}<title>{html.escape(about)}</title></text>"
    )


def _bars(episode: EpisodeTimes, x: svg.Scale, top: float) -> str:
    bars = [_bar(episode.whole, BETWEEN, f"{episode.outcome} after {episode.whole.seconds:.2f} s", x, top, 0.3)]
    if episode.opening is not None:
        bars.append(_bar(episode.opening, ENVIRONMENT, f"reset: {episode.opening.seconds:.2f} s", x, top))
    for number, turn in enumerate(episode.turns, 1):
        took = f"turn {number}: generated for {turn.generation.seconds:.2f} s"
        bars.append(_bar(turn.generation, GENERATION, took, x, top))
        if turn.environment is not None:
            acted = f"turn {number}: environment {turn.environment.seconds:.2f} s"
            bars.append(_bar(turn.environment, ENVIRONMENT, acted, x, top))
    return "".join(bars)


def _bar(span: Span, colour: int, says: str, x: svg.Scale, top: float, opacity: float = 1.0) -> str:
    left, width = x(span.start), max(NARROWEST, x(span.end) - x(span.start))
    faint = f' opacity="{opacity}"' if opacity < 1 else ""
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{BAR}" '
        f'fill="{svg.palette(colour)}"{faint}><title>{html.escape(says)}</title></rect>'
    )
