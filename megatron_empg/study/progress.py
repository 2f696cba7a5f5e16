"""How far a study is: a line per run, and the hours that are left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from megatron_empg.study.cells import Cell
from megatron_empg.study.comparisons import Results
from megatron_empg.study.places import CellPlace


def progress_lines(cells: Sequence[Cell], results: Results, runs: Path) -> list[str]:
    """What became of each cell, and the whole in one line."""
    lines = [f"{cell.name}: {state_of(cell, results, runs)}" for cell in cells]
    missing = [cell for cell in cells if cell not in results]
    told = f"{len(cells) - len(missing)} of {len(cells)} runs have ended"
    hours = hours_left(missing, results)
    if missing and hours is not None:
        told += f"; about {hours:.1f} hours are left, by the mean of those that finished"
    return [*lines, told]


def state_of(cell: Cell, results: Results, runs: Path) -> str:
    """How a run has ended, or whether it was begun."""
    if cell in results:
        return results[cell].ended
    place = CellPlace(runs, cell)
    if place.folder.begun():
        return f"begun, checkpoint of step {place.folder.last_checkpoint()}"
    return "waiting"


def hours_left(missing: Sequence[Cell], results: Results) -> float | None:
    """Hours of the missing runs, by the mean of their task's finished ones; None where a task has none yet."""
    seconds: dict[str, list[int]] = {}
    for cell, result in results.items():
        if result.ended == "finished":
            seconds.setdefault(cell.task, []).append(result.seconds)
    total = 0.0
    for cell in missing:
        if cell.task not in seconds:
            return None
        total += mean(seconds[cell.task])
    return total / 3600
