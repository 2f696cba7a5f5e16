"""The numbers that papers published: the file beside this one, typed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from megatron_empg.common.section import Positive, Section
from megatron_empg.common.values import faults_of
from megatron_empg.recipe.yaml_text import read_yaml
from megatron_empg.report.table.methods import Method
from megatron_empg.report.table.names import Column, SplitOrAll

FILE = Path(__file__).with_name("published.yaml")
PaperName = Literal["empg", "gigpo", "epo", "aem", "arlarena"]
FIRST_CHOICE: PaperName = "empg"
"""Whose numbers are shown where none is asked for, if it knows the environment."""
Read = Literal["full text", "repository README", "project page", "abstract", "secondary"]
BySplit = dict[SplitOrAll, dict[Column, float]]


class PublishedRow(Section):
    """A line of a paper's table. Figures are in percent; a column that is not there was not read."""

    model: str
    algorithm: str | None = None
    """As `algorithm.name` of a recipe calls it; None where we have no such algorithm."""
    modulation: str = "none"
    regularizer: str = "none"
    called: str | None = None
    """What the paper calls what we do not have."""
    figures: BySplit
    spread: BySplit = Field(default_factory=dict)
    """What stands behind ± : the standard deviation over the paper's seeds."""

    @property
    def method(self) -> Method | None:
        """The method as a recipe would name it; None where none could."""
        if self.algorithm is None:
            return None
        return Method(self.algorithm, self.modulation, self.regularizer)

    @property
    def label(self) -> str:
        return self.called or Method(self.algorithm, self.modulation, self.regularizer).label


class PaperSetup(Section):
    """One environment of a paper: how it was trained and asked, as far as that was read, and its lines."""

    environment: str
    table: str
    read: Read
    source: str
    """What it was read in."""
    seeds: Positive | None = None
    steps: Positive | None = None
    temperature: float | None = None
    """Of sampling in evaluations."""
    questions: Positive | None = None
    """Of an evaluation."""
    turns: Positive | None = None
    history: int | None = None
    """Earlier turns that a prompt shows."""
    remarks: list[str] = Field(default_factory=list)
    rows: list[PublishedRow]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(row.model for row in self.rows))

    def not_read(self) -> list[str]:
        """What of the set-up is not known, in words."""
        known = {
            "seeds": self.seeds,
            "steps": self.steps,
            "temperature of evaluations": self.temperature,
            "number of evaluation questions": self.questions,
            "turns": self.turns,
            "history window": self.history,
        }
        return [name for name, value in known.items() if value is None]


class Paper(Section):
    """A paper and what it measured."""

    title: str
    arxiv: str
    version: str | None = None
    dated: str | None = None
    setups: list[PaperSetup]

    @property
    def reference(self) -> str:
        """``arXiv 2605.00425v3``."""
        return f"arXiv {self.arxiv}{self.version or ''}"


class PublishedPapers(Section):
    """All papers, and how the kinds of our evaluations are called in them."""

    read_on: str
    kinds: dict[str, dict[Column, list[str]]]
    papers: dict[PaperName, Paper]

    def column(self, environment: str, kind: str) -> Column:
        """What the papers call a kind of the environment; its own name where they have none."""
        for column, names in self.kinds.get(environment, {}).items():
            if kind in names:
                return column
        return kind

    def order(self, environment: str) -> list[Column]:
        """The papers' order of the environment's kinds."""
        return list(self.kinds.get(environment, {}))

    def of(self, environment: str, asked: PaperName | None) -> list[tuple[Paper, PaperSetup]]:
        """The set-ups to show beside an environment's runs: the asked paper's, else EMPG's, else all there are."""
        found = self._setups(environment, [asked or FIRST_CHOICE])
        if not found and asked is None:
            return self._setups(environment, self.papers)
        return found

    def _setups(self, environment: str, names: Iterable[PaperName]) -> list[tuple[Paper, PaperSetup]]:
        found = []
        for name in names:
            paper = self.papers[name]
            for setup in paper.setups:
                if setup.environment == environment:
                    found.append((paper, setup))
        return found


@cache
def published() -> PublishedPapers:
    """The file, checked."""
    return read_published(FILE)


def read_published(path: Path) -> PublishedPapers:
    """A file of published numbers. Raises ValueError that names the file for one that is none."""
    try:
        return PublishedPapers.model_validate(read_yaml(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(faults_of(error))}") from None
