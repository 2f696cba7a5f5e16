"""What was found on one task, as a line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from bench.mechanism.blocks import Block, TurnTable
from bench.mechanism.entropies import BinFindings, Correlations, Spread, bins_of, correlations_of, spread_of
from bench.mechanism.products import Products
from bench.mechanism.updates import BestScaling, UpdateFindings, best_scaling, update_findings
from megatron_empg.common.files import put_text
from megatron_empg.common.jsonl import read_lines


@dataclass(frozen=True)
class Findings:
    """Of one task."""

    task: str
    recipe: str
    overrides: list[str]
    policy: str
    """SHA-256 of its weights."""
    commit: str
    batches: int
    episodes: int
    turns: int
    success: float
    """Mean reward of the episodes."""
    turns_per_episode: float
    equal_groups: float
    """Share of the questions whose episodes all earned the same, which DAPO drops."""
    minutes: float
    """Of one core, to measure the gradients."""
    spread: Spread
    bins: list[BinFindings]
    correlations: Correlations
    updates: list[UpdateFindings]
    best_scaling: BestScaling


@dataclass(frozen=True)
class Origin:
    """What was measured, and with what."""

    task: str
    recipe: str
    overrides: list[str]
    policy: str
    commit: str
    minutes: float


def findings_of(origin: Origin, blocks: list[Block], edges: list[float]) -> Findings:
    """Everything that is told of a task's blocks."""
    products = Products(blocks)
    turns = TurnTable.joined([block.turns for block in blocks])
    first = turns.place == 0
    question = turns.question_of[first]
    _, index = np.unique(question, return_inverse=True)
    means = np.bincount(index, turns.reward[first]) / np.bincount(index)
    squares = np.bincount(index, turns.reward[first] ** 2) / np.bincount(index)
    return Findings(
        **asdict(origin),
        batches=int(products.batches.sum()),
        episodes=int(first.sum()),
        turns=len(first),
        success=float(turns.reward[first].mean()),
        turns_per_episode=float(len(first) / first.sum()),
        equal_groups=float((squares - means**2 < 1e-12).mean()),
        spread=spread_of(turns),
        bins=bins_of(turns, edges, products),
        correlations=correlations_of(turns),
        updates=update_findings(blocks, products),
        best_scaling=best_scaling(products),
    )


def add_findings(path: Path, found: Findings) -> None:
    """Put a task's line in the place of the one that it had."""
    lines = [line for line in read_findings(path) if line.task != found.task]
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [json.dumps(_short(asdict(line))) for line in [*lines, found]]
    put_text(path, "\n".join(texts) + "\n")


def read_findings(path: Path) -> list[Findings]:
    """The lines, as they lie; none where there is no file."""
    if not path.exists():
        return []
    return [TypeAdapter(Findings).validate_python(line) for line in read_lines(path)]


def _short(value: Any) -> Any:
    """Numbers to six digits, which is more than is known."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return value
