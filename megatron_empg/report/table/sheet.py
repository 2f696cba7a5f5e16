"""Rows and columns as text: aligned for a terminal, or as Markdown."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

ESCAPED = "\\|`*_<>[]~"
"""What Markdown would read otherwise than as text."""


@dataclass(frozen=True)
class Sheet:
    """A title, headings, and rows of as many cells; `texts` are the columns of words, which stand to the left.

    Example: ``Sheet("success", ["method", "all"], [["GRPO", "62.4"]])``
    """

    title: str
    headings: list[str]
    rows: list[list[str]]
    texts: frozenset[int] = frozenset({0})

    def plain(self) -> str:
        """The sheet as text for a terminal."""
        lines = [[printable(cell) for cell in row] for row in (self.headings, *self.rows)]
        widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
        headings, *rows = [self._aligned(line, widths) for line in lines]
        longest = max(map(_width, [headings, *rows]))
        return "\n".join([printable(self.title), headings, "-" * longest, *rows])

    def markdown(self) -> str:
        """The sheet as GitHub's Markdown."""
        rule = []
        for column in range(len(self.headings)):
            rule.append(":---" if column in self.texts else "---:")
        rows = [_row(self.headings), "| " + " | ".join(rule) + " |", *map(_row, self.rows)]
        return "\n".join([f"**{escaped(self.title)}**", "", *rows])

    def _aligned(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        aligned = []
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            space = " " * (width - _width(cell))
            aligned.append(cell + space if column in self.texts else space + cell)
        return "  ".join(aligned).rstrip()


def printable(text: str) -> str:
    """The text without control characters: names of kinds and paths come from outside."""
    return "".join(mark if mark.isprintable() else "?" for mark in text)


def escaped(text: str) -> str:
    """The text escaped for Markdown."""
    found = printable(text)
    for mark in ESCAPED:  # the backslash first, which the others are given
        found = found.replace(mark, f"\\{mark}")
    return found


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"


def _width(text: str) -> int:
    """Columns of a terminal."""
    columns = 0
    for mark in text:
        if not unicodedata.combining(mark):
            columns += 1 + (unicodedata.east_asian_width(mark) in "WF")
    return columns
