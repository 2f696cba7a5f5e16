"""The best documents of a query by the sum of their words' scores.

All sums are exact: scores are float32 and whole multiples of 2**-40, and are added up in float64. So no order of
adding changes a result, and documents of equal words have equal scores; of those the lower number comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from megatron_empg.environments.deep_search.search.errors import MissingPackageError

BLOCK = 128
"""Postings whose largest score is kept together."""
LEAST_SCORE = 2.0**-40
"""What scores are whole multiples of."""


class DamagedPostingsError(Exception):
    """Lists of postings that are not in order. Machine code raises it before it would write out of bounds."""


class Postings(NamedTuple):
    """All words' lists one behind the other; those of word `i` lie from `starts[i]` to `starts[i + 1]`."""

    documents: np.ndarray  # int32, ascending within a list
    scores: np.ndarray  # float32, above 0
    starts: np.ndarray  # int64
    block_starts: np.ndarray  # int64: where each word's blocks begin in the next two
    block_last: np.ndarray  # int32: the last document of each block
    block_best: np.ndarray  # float32: the largest score of each block


def best_documents(
    postings: Postings, words: np.ndarray, counts: np.ndarray, documents: int, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, scores) of the best documents, best first; fewer than `top_k` where fewer hold any of the words.

    `words`: numbers of the words, each once; `counts`: how often the query says each. Lets other threads run.
    Raises MissingPackageError, or DamagedPostingsError for lists that hold no such documents.
    """
    search = compiled_search()
    found: tuple[np.ndarray, np.ndarray] = search(
        *postings, words.astype(np.int64), counts.astype(np.float64), documents, top_k
    )
    return found


def compiled_search() -> Callable[..., Any]:
    """The search as machine code. Raises MissingPackageError where numba, which makes it, cannot be imported."""
    try:
        from megatron_empg.environments.deep_search.search.max_score import search
    except ImportError as error:
        raise MissingPackageError(f"search over an index needs numba: pip install numba ({error})") from None
    compiled: Callable[..., Any] = search
    return compiled
