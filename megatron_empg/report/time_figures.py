"""Where a run's time went, as charts: phases, tokens, who waited, how fast an engine was."""

from itertools import pairwise

from matplotlib import rc_context

from megatron_empg.report.chart import Chart, blank, finished
from megatron_empg.report.data import RunData
from megatron_empg.report.lines import by_step, line_chart, smoothed
from megatron_empg.report.look import STYLE
from megatron_empg.report.points import Points, thin

PHASES = ("rollout", "score", "update", "sync", "evaluate", "checkpoint", "other")
MOST_STEPS = 120


def time_per_phase(run: RunData) -> Chart | None:
    """A stack of phases for each step."""
    phases = _phases(run)
    if not phases:
        return None
    with rc_context(STYLE):
        figure, axes = blank(unit=" s")
        base = [0.0] * len(next(iter(phases.values())))
        for place, (phase, points) in enumerate(phases.items()):
            top = [below + seconds for below, (_, seconds) in zip(base, points, strict=True)]
            edges = _edges([step for step, _ in points])
            axes.stairs(top, edges, baseline=base, fill=True, color=f"C{place}", linewidth=0, label=phase)
            base = top
        by_step(axes)
        return finished("Time of a step", "Seconds of wall-clock time by phase.", figure, (0.0,))


def _phases(run: RunData) -> dict[str, Points]:
    """The phases that took any time, each with its seconds at every step, thinned."""
    measured = {}
    for phase in PHASES:
        seconds = dict(run.series(f"time/{phase}"))
        if any(seconds.values()):
            measured[phase] = seconds
    steps = sorted(set().union(*measured.values()))
    thinned = {}
    for phase, seconds in measured.items():
        thinned[phase] = thin([(step, seconds.get(step, 0.0)) for step in steps], MOST_STEPS)
    return thinned


def _edges(steps: list[float]) -> list[float]:
    """Where each step's bar begins and ends: half way to its neighbours."""
    middles = [(left + right) / 2 for left, right in pairwise(steps)]
    if not middles:
        return [steps[0] - 0.5, steps[0] + 0.5]
    return [2 * steps[0] - middles[0], *middles, 2 * steps[-1] - middles[-1]]


def throughput(run: RunData) -> Chart | None:
    return line_chart("Tokens per second", "", smoothed("tokens/s", run.series("tokens_per_second"), "C2"))


def idle_shares(run: RunData) -> Chart | None:
    lines = smoothed("trainer", run.series("trainer/idle_share"))
    lines += smoothed("engines", run.series("engine/idle_share_mean"), "C1")
    lines += smoothed("the idlest engine", run.series("engine/idle_share_worst"), "C2")
    caption = (
        "Of the trainer, the share of a step that it waited for the batch; of an engine, that in which it had no "
        "request."
    )
    return line_chart("Who waits", caption, lines, unit="%", y_ends=(0.0, 1.0))


def engine_speed(run: RunData) -> Chart | None:
    lines = smoothed("mean of the engines", run.series("engine/tokens_per_second_mean"))
    lines += smoothed("the slowest engine", run.series("engine/tokens_per_second_worst"), "C1")
    caption = "Tokens that an engine sampled per second of the rollout, by its own count."
    return line_chart("Speed of an engine", caption, lines)
