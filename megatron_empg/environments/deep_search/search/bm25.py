"""The formula by which documents are ranked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Bm25:
    """BM25 in Lucene's variant: idf = ln(1 + (N - n + 0.5) / (n + 0.5)), tf / (tf + k1 (1 - b + b l / mean l))."""

    k1: float = 0.9
    b: float = 0.4

    def __post_init__(self) -> None:
        if not (math.isfinite(self.k1) and self.k1 > 0):
            raise ValueError(f"k1 is {self.k1}; it must be above 0")
        if not 0 <= self.b <= 1:
            raise ValueError(f"b is {self.b}; it must lie between 0 and 1")

    def idf(self, with_word: np.ndarray, documents: int) -> np.ndarray:
        """How much a word tells that stands in so many documents."""
        import numpy as np

        return np.log1p((documents - with_word + 0.5) / (with_word + 0.5))

    def term_frequency(self, counts: np.ndarray, lengths: np.ndarray, mean_length: float) -> np.ndarray:
        """How much a document is about a word that it says so often."""
        return counts / (counts + self.k1 * (1 - self.b + self.b * lengths / mean_length))
