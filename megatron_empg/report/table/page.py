"""A document as text, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from megatron_empg.report.table import told
from megatron_empg.report.table.document import EnvironmentTable, PaperComparison, TableDocument, TableLine
from megatron_empg.report.table.drawn import sheets
from megatron_empg.report.table.published import PublishedPapers, published
from megatron_empg.report.table.sheet import escaped, printable

FORMAT, VERSION = "megatron_empg table", 1


def text_of(document: TableDocument, *, markdown: bool = False) -> str:
    """The tables with what must be said of them."""
    known = published()
    parts: list[str] = []
    for table in document.tables:
        parts += _parts(table, known, markdown)
    parts += _list("Left out:", told.left_out(document), markdown)
    return "\n\n".join(parts)


def _parts(table: EnvironmentTable, known: PublishedPapers, markdown: bool) -> list[str]:
    drawn = sheets(table, known)
    if markdown:
        parts = [sheet.markdown() for sheet in drawn]
    else:
        parts = [sheet.plain() for sheet in drawn]
    parts += _list("", told.legend(table), markdown)
    parts += _list("Against the plain algorithm, same seeds:", told.gains(table), markdown)
    parts += _list("Of our lines:", told.oddities(table), markdown)
    for beside in table.beside:
        title = f"Not comparable with {beside.paper.title} ({beside.paper.reference}), by line, because of"
        parts += _list(f"{title}:", told.not_comparable(beside), markdown)
    if table.beside:
        parts += _list("Sources:", (told.source(beside, known) for beside in table.beside), markdown)
    else:
        parts.append(_text(f"No paper's numbers of {table.environment} were asked for that are known.", markdown))
    return parts


def _list(title: str, sentences: Iterable[str], markdown: bool) -> list[str]:
    """One part, none where there is nothing to say."""
    lines = [_text(sentence, markdown) for sentence in sentences]
    if not lines:
        return []
    if not title and not markdown:
        return ["\n".join(lines)]
    items = "\n".join(f"- {line}" for line in lines)
    if not title:
        return [items]
    if markdown:
        return [_text(title, markdown), items]
    return [f"{title}\n{items}"]


def _text(sentence: str, markdown: bool) -> str:
    if markdown:
        return escaped(sentence)
    return printable(sentence)


def json_of(document: TableDocument) -> dict[str, Any]:
    """The table as docs/table.md describes it. Shares are from 0 to 1, what papers printed is in percent."""
    known = published()
    return {
        "format": FORMAT,
        "version": VERSION,
        "environments": [_environment(table, known) for table in document.tables],
        "left_out": [asdict(one) for one in document.left_out],
    }


def _environment(table: EnvironmentTable, known: PublishedPapers) -> dict[str, Any]:
    return {
        "environment": table.environment,
        "lines": [_line(line) for line in table.lines],
        "gains": [asdict(gain) for gain in table.gains],
        "without_plain": table.without_plain,
        "papers": [_paper(beside, known) for beside in table.beside],
    }


def _line(line: TableLine) -> dict[str, Any]:
    cells = []
    for (split, decoding), columns in line.cells.items():
        found = {column: asdict(cell) for column, cell in columns.items()}
        cells.append({"split": split, "decoding": decoding, "columns": found})
    differs = None
    if line.differs is not None:
        differs = {"from": line.differs[0], "keys": [asdict(difference) for difference in line.differs[1]]}
    group = line.group
    return {
        "line": group.number,
        "model": line.model,
        "method": group.method.label,
        "algorithm": group.method.algorithm,
        "modulation": group.method.modulation,
        "regularizer": group.method.regularizer,
        "step": group.first.step,
        "runs": [{"name": one.name, "seed": one.seed, "source": one.source} for one in group.results],
        "figures": cells,
        "notes": line.notes,
        "differs": differs,
    }


def _paper(beside: PaperComparison, known: PublishedPapers) -> dict[str, Any]:
    reasons = [{"reason": reason, "lines": lines} for reason, lines in beside.reasons]
    return {
        "title": beside.paper.title,
        "reference": beside.paper.reference,
        "read_on": known.read_on,
        "setup": beside.setup.model_dump(mode="json"),
        "not_read": beside.setup.not_read(),
        "not_comparable": reasons,
    }
