"""What a run says while it goes on: a line a step, and on a terminal a live line of what happens now."""

import time
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from megatron_empg.common.jsonl import number
from megatron_empg.common.wilson import WIDE, wilson

HEADER_EVERY = 20
LONGEST = 1e9
"""Seconds of a run: what is larger, or not a number, nobody has measured."""
# Heading, metric, and how its value is written, in reading order.
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("reward", "train/reward", "{:.3f}"),
    ("success", "train/success", "{:.1%}"),
    ("entropy", "policy/entropy", "{:.3f}"),
    ("KL old→new", "policy/approx_kl", "{:.1e}"),
    ("KL initial", "policy/kl_to_initial", "{:.4f}"),
    ("tokens/s", "tokens_per_second", "{:,.0f}"),
    ("rollout", "time/rollout", "{:.1f}s"),
    ("score", "time/score", "{:.1f}s"),
    ("update", "time/update", "{:.1f}s"),
    ("sync", "time/sync", "{:.1f}s"),
    ("step time", "time/step", "{:.1f}s"),
)


class StepProgress:
    """Prints finished steps; on a terminal also a bar with the running phase. Use as a context manager."""

    def __init__(self, total_steps: int, *, done: int = 0, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._total = total_steps
        self._lines = 0
        self._started = time.monotonic()
        self._first = done
        self._done = done
        self._bar: Bar | None = None
        if self.console.is_terminal:
            self._bar = Bar(
                SpinnerColumn(),
                TextColumn("[bold]step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}", style="dim"),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=total_steps, completed=done, left="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, name: str, done: int | None = None, total: int | None = None) -> None:
        """Show what happens now, e.g. ``phase("rollout", 23, 64)``. Nothing where there is no terminal."""
        if self._bar is not None:
            count = ""
            if done is not None:
                count = f" {done}" + ("" if total is None else f"/{total}")
            self._bar.update(self._task, description=name + count)

    def note(self, text: str) -> None:
        """Print a message between the steps' lines."""
        self.console.print(text, markup=False)

    def note_without_terminal(self, text: str) -> None:
        """Print a message where no live line says it."""
        if self._bar is None:
            self.note(text)

    def finish_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Print a finished step's line, and one for an evaluation if there was one. Missing metrics show as -."""
        if any(metrics.get(name) is not None for _, name, _ in COLUMNS):
            if self._lines % HEADER_EVERY == 0:
                self.console.print(header(), style="bold", markup=False)
            self._lines += 1
            self.console.print(step_line(step, self._total, metrics), markup=False)
        if metrics.get("train/idle"):
            equal = metrics.get("train/groups_dropped_equal") or 0
            self.note(f"step {step} trained on nothing: too few groups to learn from, {equal:g} had equal rewards")
        evaluation = evaluation_line(step, metrics)
        if evaluation:
            self.console.print(evaluation, style="cyan", markup=False)
        self._done = max(self._done, step)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, left=self._time_left())

    def _time_left(self) -> str:
        steps = self._done - self._first
        if steps <= 0 or self._done >= self._total:
            return ""
        seconds = (time.monotonic() - self._started) / steps * (self._total - self._done)
        return f"about {duration(seconds)} left"


def header() -> str:
    """The headings above `step_line`."""
    return "      step  " + "  ".join(f"{title:>{_width(title)}}" for title, _, _ in COLUMNS)


def step_line(step: int, total: int, metrics: Mapping[str, Any]) -> str:
    """One step in columns; a metric that was not measured shows as -."""
    cells = []
    for title, name, form in COLUMNS:
        value = number(metrics.get(name))
        cells.append(f"{'-' if value is None else form.format(value):>{_width(title)}}")
    return f"{f'{step}/{total}':>10}  " + "  ".join(cells)


def evaluation_line(step: int, metrics: Mapping[str, Any]) -> str:
    """``evaluation at step 10: test_id sampled 41.0%, greedy 55.0%; test_ood ...``; empty without one.

    A share of few questions says how sure it is: ``sampled 41.0% ± 12 points (60 questions)``.
    """
    splits: dict[str, list[str]] = {}
    for name, value in metrics.items():
        kind, _, rest = name.partition("/")
        split, _, decoding = rest.partition("/")
        if kind == "eval" and decoding in ("sampled", "greedy") and value is not None:
            sure = _how_sure(value, metrics.get(f"{name}_questions"))
            splits.setdefault(split, []).append(f"{decoding} {value:.1%}{sure}")
    shown = [f"{split} {', '.join(values)}" for split, values in splits.items()]
    if metrics.get("validation/loss") is not None:
        shown.append(_validation(metrics))
    if not shown:
        return ""
    return f"evaluation at step {step}: {'; '.join(shown)}"


def _how_sure(share: float, questions: float | None) -> str:
    """Half of the share's interval of 95%, where it is wide; nothing where it is narrow, or nobody says how many
    questions were asked."""
    if not questions:
        return ""
    count = round(questions)
    half = wilson(round(share * count), count).half_width
    if half <= WIDE:
        return ""
    return f" ± {100 * half:.0f} points ({count} questions)"


def _validation(metrics: Mapping[str, Any]) -> str:
    """The line's part of a supervised warm-up."""
    loss = f"held-out walkthroughs: loss {metrics['validation/loss']:.4f}"
    surely = metrics.get("validation/correct_surely")
    if surely is None:
        return loss
    return f"{loss}, sure tokens {surely:.1%}"


def duration(seconds: float) -> str:
    """``45s``, ``3m 20s``, ``2h 05m``; what is no time that a run can take is ``over 30 years``."""
    if not seconds < LONGEST:
        return "over 30 years"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def _width(title: str) -> int:
    return max(len(title), 7)
