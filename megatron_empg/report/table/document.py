"""The whole of what `empg table` says: lines of ours and of papers, gains over the plain algorithm, and notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_empg.report.table.cells import GainOverPlain, TableCell, cells_of, gains_of, passes_of
from megatron_empg.report.table.comparable import model_of, reasons
from megatron_empg.report.table.documents import results_of_document
from megatron_empg.report.table.errors import TableError
from megatron_empg.report.table.groups import Difference, RunGroup, grouped, plain_for
from megatron_empg.report.table.measured import Pass
from megatron_empg.report.table.names import Column
from megatron_empg.report.table.published import (
    Paper,
    PaperName,
    PaperSetup,
    PublishedPapers,
    PublishedRow,
    published,
)
from megatron_empg.report.table.results import ExcludedRun, Result, result_of_run


@dataclass(frozen=True)
class TableLine:
    """Runs of ours: what they are, and what they found."""

    group: RunGroup
    model: str
    cells: dict[Pass, dict[Column, TableCell]]
    notes: list[str]
    differs: tuple[int, list[Difference]] | None


@dataclass(frozen=True)
class PaperComparison:
    """A paper's set-up, why which of our lines are not comparable with it, and what of it is not known."""

    paper: Paper
    setup: PaperSetup
    reasons: list[tuple[str, list[int]]]
    """A sentence, and the numbers of the lines that it is true of."""

    @property
    def rows(self) -> list[PublishedRow]:
        return self.setup.rows


@dataclass(frozen=True)
class EnvironmentTable:
    """All of one environment."""

    environment: str
    lines: list[TableLine]
    beside: list[PaperComparison]
    gains: list[GainOverPlain]
    without_plain: list[int]
    """Lines that no line of the plain algorithm is there to compare with."""

    def passes(self) -> list[Pass]:
        """Every split and decoding of any line."""
        found: dict[Pass, None] = {}
        for line in self.lines:
            found |= dict.fromkeys(line.cells)
        return list(found)


@dataclass(frozen=True)
class TableDocument:
    """A table for each environment, and what could not be shown."""

    tables: list[EnvironmentTable]
    left_out: list[ExcludedRun]


def make_document(paths: Sequence[Path], asked: PaperName | None) -> TableDocument:
    """Make a table of run folders and evaluations.

    Raises TableError where one of them is neither, or none can be shown.
    """
    results: list[Result] = []
    left_out: list[ExcludedRun] = []
    for path in unlike(paths):
        for found in _results(path):
            if isinstance(found, ExcludedRun):
                left_out.append(found)
            else:
                results.append(found)
    if not results:
        told = "".join(f"\n  - {one.name}: {one.why}" for one in left_out)
        raise TableError(f"there is no evaluation to show:{told}")
    groups = grouped(results)
    known = published()
    by_environment: dict[str, list[RunGroup]] = {}
    for group in groups:
        by_environment.setdefault(group.environment, []).append(group)
    tables = []
    for environment, ours in by_environment.items():
        tables.append(_table(environment, ours, known, asked))
    return TableDocument(tables, left_out)


def unlike(paths: Sequence[Path]) -> list[Path]:
    """Each place once, however it is written."""
    found: dict[Path, Path] = {}
    for path in paths:
        found.setdefault(path.resolve(), path)
    return list(found.values())


def _results(path: Path) -> Sequence[Result | ExcludedRun]:
    if path.is_file():
        return results_of_document(path)
    return [result_of_run(path)]


def _table(
    environment: str, groups: Sequence[RunGroup], known: PublishedPapers, asked: PaperName | None
) -> EnvironmentTable:
    setups = known.of(environment, asked)
    models: list[str] = []
    for _, setup in setups:
        models += setup.models
    lines = [_line(group, models, known) for group in groups]
    gains: list[GainOverPlain] = []
    without: list[int] = []
    for group in groups:
        if group.method.is_plain:
            continue
        plain = plain_for(group, groups)
        if plain is None:
            without.append(group.number)
        else:
            gains += gains_of(group, plain)
    beside = [_beside(paper, setup, groups) for paper, setup in setups]
    return EnvironmentTable(environment, lines, beside, gains, without)


def _line(group: RunGroup, models: list[str], known: PublishedPapers) -> TableLine:
    cells = {asked: cells_of(group, asked, known) for asked in passes_of(group)}
    return TableLine(group, model_of(group.first.recipe, models), cells, group.notes(), group.differs)


def _beside(paper: Paper, setup: PaperSetup, groups: Sequence[RunGroup]) -> PaperComparison:
    """Reasons that several lines share are told once."""
    found: dict[str, list[int]] = {}
    for group in groups:
        for reason in dict.fromkeys(reasons(group, paper, setup)):
            found.setdefault(reason, []).append(group.number)
    return PaperComparison(paper, setup, list(found.items()))
