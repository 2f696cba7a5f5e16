"""A table's lines as sheets: ours and a paper's side by side, a sheet for each split and decoding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from megatron_empg.report.table.cells import OVER_QUESTIONS, TableCell
from megatron_empg.report.table.document import EnvironmentTable, TableLine
from megatron_empg.report.table.measured import Pass
from megatron_empg.report.table.names import ALL, ALL_SPLITS, Column
from megatron_empg.report.table.published import Paper, PaperSetup, PublishedPapers, PublishedRow
from megatron_empg.report.table.sheet import Sheet

OURS = "this project"
NOT_READ = "–"
HEADINGS = ["#", "by", "model", "method", "seeds", "steps"]
TEXTS = frozenset({1, 2, 3})
WRITTEN_SPLITS: dict[str, str] = {ALL_SPLITS: "all splits"}
PAPERS_DECODING = "sampled"
MOST_KINDS = 8
"""Of kinds that no paper has, so many are columns."""


@dataclass(frozen=True)
class _Row:
    """A line of either kind, by which it is put in its place."""

    rank: tuple[Any, ...]
    words: list[str]
    figures: dict[Column, str]

    def cells(self, columns: Iterable[Column]) -> list[str]:
        """What stands in these columns."""
        return [self.figures.get(column, NOT_READ) for column in columns]


def sheets(table: EnvironmentTable, known: PublishedPapers) -> Iterator[Sheet]:
    """All splits together only where a paper tells of them; very many kinds in a sheet of their own."""
    for asked in table.passes():
        papers = list(_papers(table, asked))
        if asked[0] == ALL_SPLITS and not papers:
            continue
        rows = sorted([*_ours(table, asked), *papers], key=attrgetter("rank"))
        yield from _sheets(_title(table, asked), rows, known.order(table.environment))


def _title(table: EnvironmentTable, asked: Pass) -> str:
    split, decoding = asked
    where = WRITTEN_SPLITS.get(split, split)
    return f"{table.environment}, {where}, {decoding}: success in %"


def _sheets(title: str, rows: Sequence[_Row], order: Sequence[Column]) -> Iterator[Sheet]:
    """`order`: the kinds that papers have."""
    there: dict[Column, None] = {}
    for row in rows:
        there |= dict.fromkeys(row.figures)
    published = [column for column in (*order, ALL) if column in there]
    others = sorted(there.keys() - set(published))
    if len(others) > MOST_KINDS:
        yield _sheet(title, rows, published)
        yield _by_kind(f"{title}, by kind and line", rows, others)
    else:
        last = [column for column in published if column == ALL]
        yield _sheet(title, rows, [*published[: len(published) - len(last)], *others, *last])


def _sheet(title: str, rows: Iterable[_Row], columns: Sequence[Column]) -> Sheet:
    drawn = [[*row.words, *row.cells(columns)] for row in rows]
    return Sheet(title, [*HEADINGS, *columns], drawn, TEXTS)


def _by_kind(title: str, rows: Iterable[_Row], kinds: Sequence[Column]) -> Sheet:
    """A row for each kind, as no page is wide enough for so many columns; our lines alone have them."""
    headings, columns = ["kind"], [list(kinds)]
    for row in rows:
        if row.figures.keys() & set(kinds):
            headings.append(row.words[0])
            columns.append(row.cells(kinds))
    drawn = list(map(list, zip(*columns, strict=True)))
    return Sheet(title, headings, drawn)


def _ours(table: EnvironmentTable, asked: Pass) -> Iterator[_Row]:
    for line in table.lines:
        if asked in line.cells:
            yield _our_row(line, asked)


def _our_row(line: TableLine, asked: Pass) -> _Row:
    group = line.group
    seeds = f"{len(group.seeds)} ({', '.join(map(str, group.seeds))})"
    words = [str(group.number), OURS, line.model, group.method.label, seeds, str(group.first.step)]
    figures = {}
    for column, cell in line.cells[asked].items():
        figures[column] = percent(cell.value)
        if column == ALL:  # there is room for one interval
            figures[column] += interval_of(cell)
    return _Row((0, group.method.rank, 0, group.number), words, figures)


def _papers(table: EnvironmentTable, asked: Pass) -> Iterator[_Row]:
    split, decoding = asked
    if decoding != PAPERS_DECODING:
        return
    for beside in table.beside:
        for place, row in enumerate(beside.rows):
            figures = _printed(row, split)
            if figures:
                yield _Row(_rank(row, place), _words(beside.paper, beside.setup, row), figures)


def _rank(row: PublishedRow, place: int) -> tuple[Any, ...]:
    """Below ours of the same method; what we do not have is behind everything."""
    method = row.method
    if method is None:
        return (1, (), 1, place)
    return (0, method.rank, 1, place)


def _words(paper: Paper, setup: PaperSetup, row: PublishedRow) -> list[str]:
    return ["", paper.title, row.model, row.label, str(setup.seeds or NOT_READ), str(setup.steps or NOT_READ)]


def _printed(row: PublishedRow, split: str) -> dict[Column, str]:
    """As the paper prints them."""
    found = {}
    for key, figures in row.figures.items():
        if key != split:
            continue
        for column, value in figures.items():
            found[column] = _digits(value)
            spread = row.spread.get(key, {}).get(column)
            if spread is not None:
                found[column] += f" ±{_digits(spread)}"
    return found


def _digits(value: float) -> str:
    """One behind the point, or as many as were printed."""
    if round(value, 1) == value:
        return f"{value:.1f}"
    return f"{value:g}"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def interval_of(cell: TableCell) -> str:
    """`` [68.0, 80.2]``, with a ``q`` where it is that of one seed's questions; empty where there is none."""
    if cell.interval is None:
        return ""
    told = f" [{percent(cell.interval.low)}, {percent(cell.interval.high)}]"
    if cell.over == OVER_QUESTIONS:
        told += "q"
    return told
