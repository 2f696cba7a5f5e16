"""Inner products of mean updates, without the bias that noise gives a product of an update with itself.

The mean of a row's updates is estimated by batches; a product of two such means takes pairs of different blocks
alone, whose noise has nothing in common. What is computed can leave a block out: so the jackknife finds errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from bench.mechanism.blocks import Block
from megatron_empg.report.table.seeds import student_quantile

COLUMNS = 32_768
"""Numbers of the updates that are taken at once."""
ADAM_EPS = 1e-8


@dataclass(frozen=True)
class Estimate:
    """A number, and half the width of its interval of 95% by the jackknife: over blocks of batches for updates,
    over batches for correlations."""

    value: float
    half_width: float

    @property
    def low(self) -> float:
        return self.value - self.half_width

    @property
    def high(self) -> float:
        return self.value + self.half_width


class Products:
    """Of the blocks of one task."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.count = len(blocks)
        self.batches = np.array([len(block.grams) for block in blocks])
        self.grams = np.stack([block.grams.sum(0) for block in blocks])
        """Of each block the sum of its batches' inner products, [blocks, rows, rows]."""
        self.cross = _cross(blocks)
        """Inner products of each block's sums with each other's, [blocks, blocks, rows, rows]."""
        self._adam = _adam(blocks)

    def of_means(self, chosen: Sequence[int]) -> Float[np.ndarray, "rows rows"]:
        """Inner products of the rows' expected updates."""
        picked = self.cross[np.ix_(chosen, chosen)]
        same = picked[np.arange(len(chosen)), np.arange(len(chosen))].sum(0)
        pairs = self.batches[chosen].sum() ** 2 - (self.batches[chosen] ** 2).sum()
        product = (picked.sum((0, 1)) - same) / pairs
        return (product + product.T) / 2

    def of_updates(self, chosen: Sequence[int]) -> Float[np.ndarray, "rows rows"]:
        """Expected inner products of the rows' updates of one batch."""
        return self.grams[list(chosen)].sum(0) / self.batches[chosen].sum()

    def by_adam(self, without: int | None) -> Float[np.ndarray, "rows"]:
        """The expected update of each row, each number divided by its root mean square as Adam does, times the
        expected update of the first row; over all blocks, or all but one."""
        return self._adam[self.count if without is None else without]

    def jackknife(self, of: Callable[[list[int]], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """What ``of`` says of all blocks, and half the width of its interval."""
        everything = list(range(self.count))
        whole = of(everything)
        parts = np.stack([of([block for block in everything if block != left]) for left in everything])
        return whole, half_width(parts)


def half_width(parts: np.ndarray) -> np.ndarray:
    """Of the interval of 95%, by what the jackknife found with one part left out, [parts, ...]."""
    count = len(parts)
    error = np.sqrt((count - 1) / count * ((parts - parts.mean(0)) ** 2).sum(0))
    return student_quantile(0.975, count - 1) * error


def _cross(blocks: Sequence[Block]) -> np.ndarray:
    count, (rows, dimensions) = len(blocks), blocks[0].sums.shape
    found = np.zeros((count * rows, count * rows))
    for first in range(0, dimensions, COLUMNS):
        part = np.concatenate([block.sums[:, first : first + COLUMNS] for block in blocks])
        found += part @ part.T
    return found.reshape(count, rows, count, rows).transpose(0, 2, 1, 3)


def _adam(blocks: Sequence[Block]) -> np.ndarray:
    """By the block that is left out, then with none left out, [blocks + 1, rows]."""
    count, (rows, dimensions) = len(blocks), blocks[0].sums.shape
    batches = np.array([len(block.grams) for block in blocks])
    found = np.zeros((count + 1, rows))
    for first in range(0, dimensions, COLUMNS):
        sums = np.stack([block.sums[:, first : first + COLUMNS] for block in blocks]).astype(np.float64)
        squares = np.stack([block.squares[:, first : first + COLUMNS] for block in blocks]).astype(np.float64)
        for left in range(count + 1):
            kept = np.arange(count) != left
            pairs = batches[kept].sum() ** 2 - (batches[kept] ** 2).sum()
            taken, truth = sums[kept], sums[kept, 0]
            product = taken.sum(0) * truth.sum(0) - (taken * truth[:, None]).sum(0)
            size = np.sqrt(squares[kept].sum(0) / batches[kept].sum()) + ADAM_EPS
            found[left] += (product / pairs / size).sum(1)
    return found
