"""The best documents, exactly, without looking at most of them. Compiled by numba; `top_k` imports it when needed.

MaxScore over windows of document numbers (Turtle and Flood 1995; by windows as in Lucene's MaxScoreBulkScorer).
A query's words are ordered by the largest score that they give. In each window, the words of the least scores
whose largest sum cannot lift a document among the best so far are set aside: documents are found by the other
words alone, and only those that may still get there are looked up in the lists set aside. Every word's list has
the largest score of each block of postings, which bounds what it adds in a window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from megatron_empg.environments.deep_search.search.top_k import BLOCK, DamagedPostingsError

WINDOW = 4096
"""Document numbers that are scored together: their sums fit the first cache of a core."""
SEEDS = 256
"""Postings of a word that are scored in full beforehand, to know early what the best must reach."""
SEED_WORDS = 3
"""Words for which that is done: those that give the most."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function to machine code that releases the GIL; it is cached on disk where possible."""
    try:
        kept: Callable[..., Any] = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        kept = numba.njit(nogil=True)(function)
    return kept


@compiled
def lower_bound(values: np.ndarray, low: int, high: int, wanted: int) -> int:
    """The first place from `low` to `high` whose value is not below `wanted`."""
    while low < high:
        middle = (low + high) >> 1
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def look_up(documents: np.ndarray, scores: np.ndarray, low: int, high: int, number: int) -> float:
    """A word's score of one document; 0 where that does not hold the word."""
    place = lower_bound(documents, low, high, number)
    if place < high and documents[place] == number:
        return float(scores[place])
    return 0.0


@compiled
def insert(best: np.ndarray, numbers: np.ndarray, filled: int, score: float, number: int) -> int:
    """Put a document among the best, in order, if it belongs there. Returns how many there are."""
    place = filled
    if filled == len(best):
        place = filled - 1
        if score < best[place] or (score == best[place] and number > numbers[place]):
            return filled
    while place > 0 and (score > best[place - 1] or (score == best[place - 1] and number < numbers[place - 1])):
        best[place] = best[place - 1]
        numbers[place] = numbers[place - 1]
        place -= 1
    best[place] = score
    numbers[place] = number
    return min(filled + 1, len(best))


@compiled
def seeded(
    documents: np.ndarray,
    scores: np.ndarray,
    starts: np.ndarray,
    words: np.ndarray,
    counts: np.ndarray,
    seed: int,
    top_k: int,
) -> float:
    """What the best `top_k` of some documents that hold the word `seed` reach; 0 where there are fewer."""
    begin = starts[words[seed]]
    end = min(starts[words[seed] + 1], begin + SEEDS)
    if end - begin < top_k:
        return 0.0
    best = np.zeros(top_k)
    numbers = np.zeros(top_k, np.int64)
    filled = 0
    for place in range(begin, end):
        number = np.int64(documents[place])
        score = counts[seed] * scores[place]
        for other in range(len(words)):
            if other != seed:
                low, high = starts[words[other]], starts[words[other] + 1]
                score += counts[other] * look_up(documents, scores, low, high, number)
        filled = insert(best, numbers, filled, score, number)
    return float(best[top_k - 1])


@compiled
def largest(block_best: np.ndarray, block_starts: np.ndarray, words: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The most that each word gives to any document."""
    most = np.zeros(len(words))
    for i in range(len(words)):
        for block in range(block_starts[words[i]], block_starts[words[i] + 1]):
            most[i] = max(most[i], counts[i] * block_best[block])
    return most


@compiled
def enter(
    base: int,
    limit: int,
    starts: np.ndarray,
    block_starts: np.ndarray,
    block_last: np.ndarray,
    block_best: np.ndarray,
    words: np.ndarray,
    counts: np.ndarray,
    block: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    most: np.ndarray,
) -> None:
    """Enter the window from `base` to `limit`: bound where each word's postings lie, and what the word gives."""
    for i in range(len(words)):
        first_block, end_block = block_starts[words[i]], block_starts[words[i] + 1]
        while block[i] < end_block and block_last[block[i]] < base:
            block[i] += 1
        most[i] = 0.0
        last = block[i]
        while last < end_block:
            most[i] = max(most[i], counts[i] * block_best[last])
            last += 1
            if block_last[last - 1] >= limit - 1:
                break
        begin = starts[words[i]]
        low[i] = max(low[i], begin + (block[i] - first_block) * BLOCK)
        high[i] = min(begin + (last - first_block) * BLOCK, starts[words[i] + 1])


@compiled
def add_up(
    base: int,
    limit: int,
    documents: np.ndarray,
    scores: np.ndarray,
    count: float,
    low: int,
    high: int,
    sums: np.ndarray,
) -> tuple[int, int]:
    """Add a word's scores to the sums of the window; returns exactly where its postings lie."""
    begin = lower_bound(documents, low, high, base)
    place = begin
    while place < high and documents[place] < limit:
        number = documents[place]
        if number < base:  # never in lists that are in order; of others it would lie before the sums
            raise DamagedPostingsError("indices.csc.index.npy is damaged: a word's documents are not in order")
        sums[number - base] += count * scores[place]
        place += 1
    return begin, place


@compiled
def completed(
    number: int,
    score: float,
    needed: float,
    documents: np.ndarray,
    scores: np.ndarray,
    counts: np.ndarray,
    aside: int,
    aside_most: float,
    low: np.ndarray,
    high: np.ndarray,
    most: np.ndarray,
) -> float:
    """A document's score with the words set aside; some sum below `needed` where it cannot get there."""
    rest = aside_most
    for i in range(aside - 1, -1, -1):
        if score + rest < needed:
            return score
        score += counts[i] * look_up(documents, scores, low[i], high[i], number)
        rest -= most[i]
    return score


@compiled
def reached_beforehand(
    documents: np.ndarray,
    scores: np.ndarray,
    starts: np.ndarray,
    words: np.ndarray,
    counts: np.ndarray,
    top_k: int,
) -> float:
    """What a document must reach to be among the best: so many real ones of the last words' do."""
    needed = 0.0
    for i in range(max(0, len(words) - SEED_WORDS), len(words)):
        needed = max(needed, seeded(documents, scores, starts, words, counts, i, top_k))
    return needed


@compiled
def set_aside(most: np.ndarray, needed: float) -> tuple[int, float]:
    """How many words, from the first on, cannot lift a document among the best; and the most that they add."""
    aside, aside_most = 0, 0.0
    while aside < len(most) and aside_most + most[aside] < needed:
        aside_most += most[aside]
        aside += 1
    return aside, aside_most


@compiled
def search(
    documents: np.ndarray,
    scores: np.ndarray,
    starts: np.ndarray,
    block_starts: np.ndarray,
    block_last: np.ndarray,
    block_best: np.ndarray,
    words: np.ndarray,
    counts: np.ndarray,
    document_count: int,
    top_k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """`top_k.best_documents`, which says what the arguments are."""
    order = np.argsort(largest(block_best, block_starts, words, counts))
    words, counts = words[order], counts[order]
    width = len(words)
    needed = reached_beforehand(documents, scores, starts, words, counts, top_k)
    best, numbers, filled = np.zeros(top_k), np.zeros(top_k, np.int64), 0
    block = block_starts[words]  # each word's first block that may reach into the window
    low, high = starts[words], starts[words]  # where those of its postings lie that may do so
    most = np.zeros(width)  # the most that the word gives in the window
    sums = np.zeros(WINDOW)
    for base in range(0, document_count, WINDOW):
        limit = min(base + WINDOW, document_count)
        enter(base, limit, starts, block_starts, block_last, block_best, words, counts, block, low, high, most)
        aside, aside_most = set_aside(most, needed)
        found = 0
        for i in range(aside, width):
            low[i], high[i] = add_up(base, limit, documents, scores, counts[i], low[i], high[i], sums)
            found += high[i] - low[i]

        # Each document found is taken once: by way of the lists where they are short, else of the window.
        by_lists = found < limit - base
        last = width if by_lists else aside + 1
        for i in range(aside, last if found else aside):
            for place in range(low[i] if by_lists else base, high[i] if by_lists else limit):
                number = np.int64(documents[place]) if by_lists else np.int64(place)
                score = sums[number - base]
                sums[number - base] = 0.0
                if score == 0.0 or score + aside_most < needed:
                    continue
                score = completed(
                    number, score, needed, documents, scores, counts, aside, aside_most, low, high, most
                )
                if score >= needed:
                    filled = insert(best, numbers, filled, score, number)
                    if filled == top_k:
                        needed = max(needed, best[top_k - 1])
        low[aside:] = high[aside:]
    return numbers[:filled], best[:filled]
