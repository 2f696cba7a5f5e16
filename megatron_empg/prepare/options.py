"""What the command line asks of a preparation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PreparationOptions:
    """`only`: the parts to prepare, all of them unless given.

    `quick`: an index or games that are there are compared by sizes alone. `generated`: so many games or products
    are made here, in the place of published ones. `python`: one that has the engine which makes games.
    """

    folder: Path
    model: str | None = None
    only: tuple[str, ...] = ()
    connections: int = 8
    bandwidth: float | None = None
    dry_run: bool = False
    quick: bool = False
    generated: int | None = None
    python: Path | None = None

    def wants(self, part: str) -> bool:
        return not self.only or part in self.only
