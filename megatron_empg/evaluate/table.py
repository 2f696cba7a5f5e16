"""Figures as tables like the paper's: policies down, kinds of question across, averages with their intervals."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_empg.evaluate.comparison import Comparison, points
from megatron_empg.evaluate.figures import ALL_SPLITS, Estimate, Figures, PassFigures
from megatron_empg.evaluate.questions import Decoding

SPLIT_NAMES = {"train": "train", "test_id": "ID", "test_ood": "OOD", ALL_SPLITS: "all"}
ESCAPES = {ord(mark): f"\\{mark}" for mark in "\\|`*_<>[]"}
"""What Markdown would read otherwise than as text."""


@dataclass(frozen=True)
class Table:
    """A title, headings, and rows of as many cells."""

    title: str
    headings: list[str]
    rows: list[list[str]]

    def plain(self) -> str:
        """For a terminal: columns aligned, the first to the left."""
        lines = [[_printable(cell) for cell in row] for row in (self.headings, *self.rows)]
        widths = [max(_width(line[column]) for line in lines) for column in range(len(self.headings))]
        drawn = ["  ".join(_aligned(line, widths)).rstrip() for line in lines]
        rule = "-" * max(map(_width, drawn))
        return "\n".join([_printable(self.title), drawn[0], rule, *drawn[1:]])

    def markdown(self) -> str:
        """As GitHub reads it."""
        rule = [":---", *["---:"] * (len(self.headings) - 1)]
        rows = [_markdown_row(self.headings), "| " + " | ".join(rule) + " |", *map(_markdown_row, self.rows)]
        return "\n".join([f"**{_escaped(self.title)}**", "", *rows])


Found = Mapping[str, Sequence[PassFigures]]
"""Figures by the policy's label."""


def tables(found: Found, temperature: float) -> list[Table]:
    """For each decoding: mean@K by kind, pass@K where there are several samples, and by hops where tasks say."""
    made: list[Table] = []
    first = next(iter(found.values()), [])
    for decoding in dict.fromkeys(figures.decoding for figures in first):
        samples = next(one.all.samples for one in first if one.decoding == decoding)
        how = "greedy" if decoding == "greedy" else f"sampled at temperature {temperature:g}"
        mean = "success" if samples == 1 else f"mean@{samples}"
        made.append(_table(f"{mean} in %, {how} (intervals of 95%)", found, decoding, lambda one: one.mean))
        if samples > 1:
            made.append(_table(f"pass@{samples} in %, {how} (intervals of 95%)", found, decoding, _pass_at_most))
        if any(one.by_hops for one in first if one.decoding == decoding):
            made.append(_hops_table(f"{mean} in % by hops, {how} (intervals of 95%)", found, decoding))
    return made


def _pass_at_most(figures: Figures) -> Estimate:
    return figures.pass_at[figures.samples]


def _table(title: str, found: Found, decoding: Decoding, told: Callable[[Figures], Estimate]) -> Table:
    passes = [one for one in next(iter(found.values())) if one.decoding == decoding]
    headings, counts = ["policy"], ["questions"]
    for one in passes:
        split = SPLIT_NAMES.get(one.split, one.split)
        for kind, figures in _kinds(one).items():
            headings.append(f"{split} {kind}")
            counts.append(str(figures.questions))
        headings.append(f"{split} avg" if one.split != ALL_SPLITS else "avg")
        counts.append(str(one.all.questions))
    headings.append("errors")
    counts.append("")
    rows = [_row(label, figures, decoding, told) for label, figures in found.items()]
    return Table(title, headings, [*rows, counts])


def _kinds(one: PassFigures) -> dict[str, Figures]:
    """The kinds that have a column of their own: none where there is one alone, which is the average."""
    return one.by_kind if len(one.by_kind) > 1 else {}


def _row(
    label: str, found: Sequence[PassFigures], decoding: Decoding, told: Callable[[Figures], Estimate]
) -> list[str]:
    passes = [one for one in found if one.decoding == decoding]
    cells = [label]
    for one in passes:
        cells += [points(told(figures).value) for figures in _kinds(one).values()]
        cells.append(with_interval(told(one.all)))
    errors = sum(sum(one.all.errors.values()) for one in passes if one.split != ALL_SPLITS)
    return [*cells, str(errors)]


def _hops_table(title: str, found: Found, decoding: Decoding) -> Table:
    passes = [one for one in next(iter(found.values())) if one.decoding == decoding and one.by_hops]
    headings, counts = ["policy"], ["questions"]
    for one in passes:
        split = SPLIT_NAMES.get(one.split, one.split)
        for hops, figures in one.by_hops.items():
            headings.append(f"{split} {hops} {'hop' if hops == 1 else 'hops'}")
            counts.append(str(figures.questions))
    rows = []
    for label, ours in found.items():
        cells = [label]
        for one in ours:
            if one.decoding == decoding:
                cells += [with_interval(figures.mean) for figures in one.by_hops.values()]
        rows.append(cells)
    return Table(title, headings, [*rows, counts])


def with_interval(estimate: Estimate) -> str:
    """``41.0 [34.4, 47.9]``, in percent."""
    interval = estimate.interval
    return f"{points(estimate.value)} [{points(interval.low)}, {points(interval.high)}]"


def compared_line(compared: Comparison) -> str:
    """A comparison as a line: the difference in points, its interval, and how single samples fell."""
    split = "all splits" if compared.split == ALL_SPLITS else compared.split
    interval = f"[{100 * compared.interval.low:+.1f}, {100 * compared.interval.high:+.1f}]"
    line = (
        f"{compared.second} against {compared.first}, {split} {compared.decoding}: "
        f"{100 * compared.difference:+.1f} points {interval}; better on {compared.second_better} questions, worse "
        f"on {compared.first_better}"
    )
    return line if compared.p_value is None else f"{line}; McNemar's p = {compared.p_value:.2g}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _escaped(text: str) -> str:
    return _printable(text).translate(ESCAPES)


def _printable(text: str) -> str:
    """Without what would move a cursor or break a line: names of kinds come from data."""
    return "".join(mark if mark.isprintable() else "?" for mark in text)


def _width(text: str) -> int:
    """Columns of a terminal."""
    return sum(
        0 if unicodedata.combining(mark) else 1 + (unicodedata.east_asian_width(mark) in "WF") for mark in text
    )


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    first = cells[0] + " " * (widths[0] - _width(cells[0]))
    others = [" " * (width - _width(cell)) + cell for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return [first, *others]


def result_line(label: str, figures: PassFigures, seconds: float) -> str:
    """A pass that is over: ``test_id sampled: 41.0% [34.4%, 47.9%] of 200 questions (seen 41.0%), 12 s``."""
    told = figures.all
    interval = f"[{told.mean.interval.low:.1%}, {told.mean.interval.high:.1%}]"
    kinds = ", ".join(f"{_printable(kind)} {one.mean.value:.1%}" for kind, one in figures.by_kind.items())
    before = f"{_printable(label)}, " if label else ""
    line = (
        f"{before}{figures.split} {figures.decoding}: {told.mean.value:.1%} {interval} of {told.questions} "
        f"questions ({kinds}), {seconds:.0f} s"
    )
    if not told.errors:
        return line
    errors = ", ".join(f"{number} {_printable(kind)}" for kind, number in told.errors.items())
    return f"{line}; errors, counted as failures: {errors}"
