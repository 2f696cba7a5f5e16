"""One frame of `empg watch`: a run's numbers and curves, as wide as the terminal is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from megatron_empg.run.progress import duration
from megatron_empg.run.watch.log_warnings import plain
from megatron_empg.run.watch.sparkline import ASCII, BLOCKS, sparkline
from megatron_empg.run.watch.view import STARTING, RunState, RunView

PHASES = (
    ("rollout", "blue"),
    ("score", "cyan"),
    ("update", "green"),
    ("sync", "magenta"),
    ("other", "white"),
)
CURVES = (
    ("reward", "train/reward", "{:.3f}"),
    ("success", "train/success", "{:.1%}"),
    ("entropy", "policy/entropy", "{:.3f}"),
    ("loss", "policy/loss", "{:.4f}"),
    ("KL to initial", "policy/kl_to_initial", "{:.4f}"),
    ("held-out loss", "validation/loss", "{:.4f}"),
)
STYLES = {
    RunState.NOT_BEGUN: "yellow",
    RunState.STARTING: "yellow",
    RunState.RUNNING: "bold green",
    RunState.SILENT: "bold red",
    RunState.STOPPED: "bold yellow",
    RunState.FINISHED: "bold blue",
}
LABEL = 14
"""Columns of a label."""
VALUE = 9
"""Columns of a curve's last value."""


@dataclass(frozen=True)
class FrameNumber:
    """A metric as a frame shows it."""

    label: str
    metric: str
    form: str = "{:,.0f}"
    above: float | None = None
    """The value above which it is in red."""


ENGINES = (
    FrameNumber("tokens/s", "engine/tokens_per_second_mean"),
    FrameNumber("prefill/s", "engine/prefill_tokens_per_second_mean"),
    FrameNumber("cache hits", "engine/cache_hit_share_mean", "{:.0%}"),
    FrameNumber("running", "engine/running_mean", "{:.1f}"),
    FrameNumber("waiting", "engine/waiting_worst", "{:.1f}"),
    FrameNumber("first token q95", "engine/first_token_seconds_q95", "{:.2f}s"),
    FrameNumber("preempted", "engine/preemptions_worst", "{:,.0f}", above=0),
    FrameNumber("healthy", "rollout/engines_healthy"),
)
BALANCE = (
    FrameNumber("trainer idle", "trainer/idle_share", "{:.0%}"),
    FrameNumber("engines idle", "engine/idle_share_mean", "{:.0%}"),
    FrameNumber("idlest engine", "engine/idle_share_worst", "{:.0%}"),
    FrameNumber("slowest/median episode", "rollout/tail_ratio", "{:.1f}"),
    FrameNumber("tools' share", "rollout/environment_share", "{:.0%}"),
    FrameNumber("trained tokens/s", "tokens_per_second"),
)
HEALTH = (
    FrameNumber("episodes in error", "train/episodes_error", above=0),
    FrameNumber("truncated", "train/episodes_truncated"),
    FrameNumber("groups kept", "train/groups_kept"),
    FrameNumber("idle step", "train/idle", above=0),
    FrameNumber("log-prob gap", "policy/logprob_gap_mean", "{:.1e}"),
    FrameNumber("gradient norm", "policy/grad_norm", "{:.2f}"),
    FrameNumber("skipped updates", "skipped_updates", above=0),
)


class RunFrame:
    """A run as rich draws it."""

    def __init__(self, view: RunView) -> None:
        self.view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.ascii_only:
            ramp = ASCII
        else:
            ramp = BLOCKS
        width = max(20, options.max_width)
        yield Group(*_parts(self.view, width, ramp, ascii_only=options.ascii_only))


def _parts(view: RunView, width: int, ramp: str, *, ascii_only: bool) -> Iterator[RenderableType]:
    yield _title(view)
    yield _progress(view, width, ascii_only=ascii_only)
    yield _doing(view)
    curves = _curves(view, width, ramp)
    if curves.row_count:
        yield _heading("learning", width)
        yield curves
    for title, row in (
        ("time of the last step", _phases(view, width, ascii_only=ascii_only)),
        ("balance", _numbers(view, BALANCE)),
        ("engines in the last step", _numbers(view, ENGINES)),
        ("health of the last step", _numbers(view, HEALTH)),
    ):
        if row:
            yield _heading(title, width)
            yield row
    yield _heading("logs", width)
    yield _warnings(view, width)


def _title(view: RunView) -> Text:
    title = Text(no_wrap=True, overflow="ellipsis")
    title.append(plain(view.name), style="bold")
    title.append("  ")
    title.append(view.state.value, style=STYLES[view.state])
    if view.state in (RunState.SILENT, RunState.STOPPED) and view.age is not None:
        title.append(f" for {duration(view.age)}", style=STYLES[view.state])
    if view.state is RunState.STARTING and view.age is not None and view.age > STARTING:
        title.append(f", nothing logged for {duration(view.age)}", style=STYLES[view.state])
    if view.stopping and view.state is RunState.RUNNING:
        title.append(", ending after this step", style="yellow")
    named = (view.setting("algorithm.name"), view.setting("algorithm.modulation.name"))
    algorithm = [str(name) for name in named if name and name != "none"]
    if view.supervised:
        algorithm = ["supervised"]
    about = [" + ".join(algorithm), view.setting("environment.name"), view.setting("model.path")]
    known = "  ".join(plain(str(each)) for each in about if each)
    title.append(f"  {known}", style="dim")
    return title


def _progress(view: RunView, width: int, *, ascii_only: bool) -> Text:
    """``step 12/36 ████░░ about 5m 20s left``."""
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"step {view.done}" + (f"/{view.steps}" if view.steps else ""), style="bold")
    if view.steps:
        full, empty = ("#", ".") if ascii_only else ("█", "░")
        room = max(5, min(40, width - 50))
        filled = min(room, round(room * view.done / view.steps))
        line.append(f" {full * filled}{empty * (room - filled)}", style="green")
    left = view.seconds_left
    if left is not None and view.state in (RunState.RUNNING, RunState.STARTING):
        line.append(f" about {duration(left)} left")
    step = view.last("time/step")
    if step is not None:
        line.append(f"  {step:.1f}s per step", style="dim")
    return line


def _doing(view: RunView) -> Text:
    """``now: rollout of step 13   restarts: 2 (from step 0, 10)   checkpoint of step 10``."""
    line = Text()
    if view.state is RunState.NOT_BEGUN:
        line.append("no process has written a log yet")
    elif view.beats:
        line.append(f"now: {_phase(view)}   ")
    restarts = len(view.starts) - 1
    if restarts > 0:
        since = ", ".join(map(str, view.starts[1:][-4:]))
        line.append(f"restarts: {restarts} (from step {since})   ", style="yellow")
    if view.state is not RunState.NOT_BEGUN:
        line.append(f"checkpoint of step {view.checkpoint}" if view.checkpoint else "no checkpoint yet")
    return line


def _phase(view: RunView) -> str:
    first = min(view.beats, key=lambda beat: beat.rank)
    others = sum(beat.place[:2] != first.place[:2] for beat in view.beats)
    ranks = ""
    if len(view.beats) > 1:
        ranks = f", {len(view.beats)} ranks"
    apart = ""
    if others:
        apart = f" ({others} elsewhere)"
    return f"{plain(first.phase)} of step {first.step}{ranks}{apart}"


def _curves(view: RunView, width: int, ramp: str) -> Table:
    """Each with its last value, and success by split where it was evaluated."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=LABEL + 6, no_wrap=True, overflow="ellipsis")
    table.add_column(width=VALUE, justify="right", no_wrap=True)
    table.add_column(no_wrap=True, style="green")
    room = max(8, width - LABEL - 6 - VALUE - 4)
    evaluated = [(name.removeprefix("eval/"), name, "{:.1%}") for name in evaluations(view)]
    for label, name, form in (*CURVES, *evaluated):
        values = view.series(name)
        if values:
            table.add_row(plain(label), form.format(values[-1]), sparkline(values, room, ramp=ramp))
    return table


def evaluations(view: RunView) -> list[str]:
    """The metrics of success by split and decoding: ``eval/SPLIT/sampled`` and ``eval/SPLIT/greedy``."""
    names = {name for record in view.records for name in record if name.startswith("eval/")}
    return sorted(name for name in names if name.count("/") == 2 and name.endswith(("/sampled", "/greedy")))


def _phases(view: RunView, width: int, *, ascii_only: bool) -> Text | None:
    """The phases as a bar, each as long as its share, and their seconds."""
    known = [(phase, style, view.last(f"time/{phase}")) for phase, style in PHASES]
    shown = [(phase, style, seconds) for phase, style, seconds in known if seconds is not None and seconds > 0]
    total = sum(seconds for _, _, seconds in shown)
    if not total:
        return None
    bar, legend = Text(no_wrap=True, overflow="crop"), Text()
    for phase, style, seconds in shown:
        bar.append(("#" if ascii_only else "█") * round((width - 2) * seconds / total), style=style)
        legend.append(f"{phase} {seconds:.1f}s {seconds / total:.0%}", style=style)
        legend.append("   ")
    for beside in ("evaluate", "checkpoint"):
        seconds_beside = view.last(f"time/{beside}")
        if seconds_beside is not None:
            legend.append(f"last {beside} {seconds_beside:.1f}s   ", style="dim")
    return Text("\n").join([bar, legend])


def _numbers(view: RunView, wanted: Sequence[FrameNumber]) -> Columns | None:
    """Those that the last step has, in as many columns as have room."""
    shown = []
    for number in wanted:
        value = view.now(number.metric)
        if value is None:
            continue
        alarming = number.above is not None and value > number.above
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{number.label} ", style="dim")
        text.append(number.form.format(value), style="bold red" if alarming else "bold")
        shown.append(text)
    if not shown:
        return None
    return Columns(shown, padding=(0, 3))


def _warnings(view: RunView, width: int) -> RenderableType:
    if not view.warnings:
        return Text("no warnings", style="dim")
    lines = []
    for warning in view.warnings:
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{plain(warning.log)}: ", style="dim")
        line.append(warning.text, style="yellow")
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return Group(*lines)


def _heading(title: str, width: int) -> Text:
    return Text(f"{title} ".ljust(min(width, 100), "-"), style="dim", no_wrap=True, overflow="crop")
