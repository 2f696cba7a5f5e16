"""What stands below a table's sheets: gains, what is odd, what is not comparable, where numbers are from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_empg.report.table.cells import OVER_QUESTIONS, GainOverPlain
from megatron_empg.report.table.document import EnvironmentTable, PaperComparison, TableDocument, TableLine
from megatron_empg.report.table.groups import Difference
from megatron_empg.report.table.names import ALL_SPLITS
from megatron_empg.report.table.published import PublishedPapers
from megatron_empg.report.table.results import ExcludedRun

MOST_KEYS = 6
"""Of two lines' differences, so many are told by name."""


def legend(table: EnvironmentTable) -> Iterator[str]:
    """How the sheets are read."""
    numbers = {len(line.group.seeds) for line in table.lines}
    if numbers != {1}:
        yield "In brackets: an interval of 95% over seeds, by Student's t; it is wide, as seeds are few."
    if 1 in numbers:
        yield "q: one seed alone, so the interval is over its questions, and does not cover the luck of training."
    if table.beside:
        yield "Papers: ± is their standard deviation over seeds; – is what was not read, or not measured."


def gains(table: EnvironmentTable) -> Iterator[str]:
    """Each line against the plain algorithm, by the seeds that both have."""
    for gain in table.gains:
        if gain.split != ALL_SPLITS:
            yield _gain(gain, table.lines)
    if any(gain.over == OVER_QUESTIONS for gain in table.gains):
        yield (
            "One seed alone says nothing of the luck of training. Its interval takes the questions of two runs "
            "for different ones; `empg evaluate --model A --model B` pairs them."
        )
    for number in table.without_plain:
        yield f"{_name(number, table.lines)} has no run of the plain algorithm beside it that is alike elsewhere"


def oddities(table: EnvironmentTable) -> Iterator[str]:
    """What a reader must know of single lines."""
    for line in table.lines:
        number = line.group.number
        for note in line.notes:
            yield f"{number}: {note}"
        if line.differs is not None:
            yield f"{number} and {line.differs[0]} differ in {_keys(line.differs[1])}"


def not_comparable(beside: PaperComparison) -> Iterator[str]:
    """Why which lines may not be held against the paper's."""
    for reason, numbers in beside.reasons:
        yield f"{', '.join(map(str, numbers))}: {reason}"
    unknown = beside.setup.not_read()
    if unknown:
        yield f"all: not read of {beside.paper.title}, so perhaps another: {', '.join(unknown)}"


def source(beside: PaperComparison, known: PublishedPapers) -> str:
    """Where a paper's numbers are from."""
    setup = beside.setup
    told = f"{beside.paper.title}: {beside.paper.reference}, {setup.table}; read {known.read_on}, {setup.read}"
    return f"{told} ({setup.source}). {' '.join(_sentence(remark) for remark in setup.remarks)}".rstrip()


def left_out(document: TableDocument) -> Iterator[str]:
    for one in document.left_out:
        yield _left_out(one)


def _left_out(one: ExcludedRun) -> str:
    return f"{one.name}: {one.why}"


def _gain(gain: GainOverPlain, lines: list[TableLine]) -> str:
    what = f"{_name(gain.line, lines)} over {_name(gain.plain, lines)}, {gain.split} {gain.decoding}"
    told = f"{what}: {_points(gain.difference)} points"
    if gain.interval is not None:
        told += f" [{_points(gain.interval.low)}, {_points(gain.interval.high)}]"
    if gain.over == OVER_QUESTIONS:
        return f"{told}, seed {gain.seeds[0]} alone, over questions"
    return f"{told} over seeds {', '.join(map(str, gain.seeds))}, paired"


def _name(number: int, lines: list[TableLine]) -> str:
    """``2 (DAPO + EMPG)``."""
    line = next(line for line in lines if line.group.number == number)
    return f"{number} ({line.group.method.label})"


def _keys(differences: list[Difference]) -> str:
    told = []
    for difference in differences[:MOST_KEYS]:
        told.append(f"{difference.key} ({_value(difference.second)}, {_value(difference.first)})")
    more = len(differences) - MOST_KEYS
    if more > 0:
        told.append(f"and {more} more keys")
    return ", ".join(told)


def _value(value: Any) -> str:
    if value is None:
        return "not given"
    return str(value)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _sentence(remark: str) -> str:
    return f"{remark[0].upper()}{remark[1:]}."
