"""From the words of documents to the lists of postings, in bounded memory.

Words are counted in portions of a few million; each portion is sorted by word and written to disk (a run). When
all documents are read, the scores can be computed, since those need every word's number of documents and the mean
length. The runs are then merged over ranges of words that fit the memory, and written in order.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_empg.environments.deep_search.search.arrays import (
    ArrayWriter,
    must_end_at,
    open_array,
    open_offsets,
    write_array,
)
from megatron_empg.environments.deep_search.search.bm25 import Bm25
from megatron_empg.environments.deep_search.search.errors import IndexFolderError
from megatron_empg.environments.deep_search.search.string_table import HashTable, text_hash
from megatron_empg.environments.deep_search.search.top_k import BLOCK, LEAST_SCORE, Postings

POSTED, SCORES, STARTS = "indices.csc.index.npy", "data.csc.index.npy", "indptr.csc.index.npy"
"""Named and laid out as bm25s does, which can open the folder too (without its vocabulary)."""
BM25S_PARAMETERS = "params.index.json"
BLOCK_STARTS, BLOCK_LAST, BLOCK_BEST = "blocks.starts.npy", "blocks.last.npy", "blocks.best.npy"
WORDS, WORD_OFFSETS, WORD_TABLE = "words.txt", "words.offsets.npy", "words"
PORTION = 4_000_000
"""Words of a run: they take 0.2 GB while they are sorted."""
MERGED = 8_000_000
"""Postings that are merged at once (or those of one word, if more): they take 0.6 GB."""


_CHECKED = 1 << 18
"""Words whose lists are checked at once."""


class _Runs:
    """All portions on disk, each sorted by word: its words, how many documents have each, those, and the counts.

    Runs are read in order and never whole.
    """

    PARTS = ("words", "held", "documents", "counts")

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / f"runs.{part}.npy" for part in self.PARTS]
        self._writers = [ArrayWriter(path, "<i4").__enter__() for path in self._paths]
        self._bounds = [(0, 0)]  # where each run ends, in words and in postings

    def append(self, words: np.ndarray, held: np.ndarray, documents: np.ndarray, counts: np.ndarray) -> None:
        """Write a run."""
        for writer, values in zip(self._writers, (words, held, documents, counts), strict=True):
            writer.append(values)
        self._bounds.append((self._writers[0].length, self._writers[2].length))

    def close(self) -> None:
        """No run is written any more."""
        for writer in self._writers:
            writer.__exit__(None, None, None)

    def opened(self) -> list[_Run]:
        """All runs, at their beginnings."""
        self.close()
        words, held, documents, counts = (open_array(path, "<i4") for path in self._paths)
        return [
            _Run(words, held, documents, counts, word, end, posting)
            for (word, posting), (end, _) in zip(self._bounds[:-1], self._bounds[1:], strict=True)
        ]


@dataclass
class _Run:
    """One run, read up to `word` and `posting`."""

    words: np.ndarray
    held: np.ndarray
    documents: np.ndarray
    counts: np.ndarray
    word: int
    end: int
    posting: int

    def take(self, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Words below `limit` that were not taken yet, how many documents have each, those, and the counts."""
        last = self.word + int(np.searchsorted(self.words[self.word : self.end], limit))
        held = self.held[self.word : last].astype(np.int64)
        found = slice(self.posting, self.posting + int(held.sum()))
        words = self.words[self.word : last]
        self.word, self.posting = last, found.stop
        return words, held, self.documents[found], self.counts[found]


class PostingsBuilder:
    """Takes documents one by one in order; `finish` writes the lists. `folder` holds the runs until then.

    Memory: 0.2 GB for a portion, 0.6 GB to merge, 0.2 GB per million different words, 4 bytes per document.
    """

    def __init__(self, folder: Path, bm25: Bm25) -> None:
        self._runs = _Runs(folder)
        self._bm25 = bm25
        self._numbers: dict[str, int] = {}
        self._lengths = array("i")
        self._portion = array("i")
        self._first = 0  # the first document of the portion
        self._with_word = np.zeros(1 << 16, np.int64)
        self.postings = 0

    @property
    def different_words(self) -> int:
        """Words that occurred so far, each counted once."""
        return len(self._numbers)

    def append(self, words: Sequence[str]) -> None:
        """The next document's words."""
        numbers = self._numbers
        self._portion.extend([numbers.setdefault(word, len(numbers)) for word in words])
        self._lengths.append(len(words))
        if len(self._portion) >= PORTION:
            self._write_run()

    def finish(self, out: Path, progress: Callable[[str], None]) -> None:
        """Write all lists into the folder `out`."""
        self._write_run()
        vocabulary = len(self._numbers)
        with_word = self._with_word[:vocabulary]
        write_array(out / STARTS, np.concatenate([[0], np.cumsum(with_word)]).astype("<i8"))
        blocks = -(-with_word // BLOCK)
        write_array(out / BLOCK_STARTS, np.concatenate([[0], np.cumsum(blocks)]).astype("<i8"))
        self._write_words(out)
        self._merge(out, with_word, progress)
        self._write_parameters(out)

    def _write_run(self) -> None:
        """Sort the portion by word and document, count, and write it."""
        if not self._portion:
            return
        lengths = np.frombuffer(self._lengths, np.int32)[self._first :]
        words = np.frombuffer(self._portion, np.int32).astype(np.int64)
        keys = (words << 32) | np.repeat(np.arange(self._first, self._first + len(lengths)), lengths)
        keys, counts = np.unique(keys, return_counts=True)
        words = keys >> 32
        present, starts = np.unique(words, return_index=True)
        held = np.diff(np.append(starts, len(words)))
        self._runs.append(present, held, keys & 0xFFFFFFFF, counts)
        if len(self._numbers) > len(self._with_word):
            self._with_word = np.append(self._with_word, np.zeros(len(self._numbers), np.int64))
        self._with_word[present] += held
        self.postings += len(words)
        self._first = len(self._lengths)
        self._portion = array("i")

    def _write_words(self, out: Path) -> None:
        ends = array("q", [0])
        hashes = array("Q")
        with (out / WORDS).open("wb", buffering=1 << 20) as file:
            for word in self._numbers:
                ends.append(ends[-1] + file.write(word.encode()))
                hashes.append(text_hash(word))
        write_array(out / WORD_OFFSETS, np.array(ends, "<i8"))
        HashTable.write(out, WORD_TABLE, np.array(hashes, "<u8"))
        self._numbers = {}

    def _merge(self, out: Path, with_word: np.ndarray, progress: Callable[[str], None]) -> None:
        """Merge the runs over ranges of words, and score."""
        lengths = np.frombuffer(self._lengths, np.int32)
        idf = self._bm25.idf(with_word.astype(np.float64), len(lengths))
        mean_length = 1.0
        if self.postings:
            mean_length = lengths.mean()
        runs = self._runs.opened()
        with (
            ArrayWriter(out / POSTED, "<i4") as documents_file,
            ArrayWriter(out / SCORES, "<f4") as scores_file,
            ArrayWriter(out / BLOCK_LAST, "<i4") as last_file,
            ArrayWriter(out / BLOCK_BEST, "<f4") as best_file,
        ):
            for begin, end in _ranges(with_word, MERGED):
                documents, counts = _merged(runs, begin, end, with_word[begin:end])
                terms = self._bm25.term_frequency(counts, lengths[documents], mean_length)
                exact = np.repeat(idf[begin:end], with_word[begin:end]) * terms
                steps = np.maximum(np.round(exact.astype(np.float32).astype(np.float64) / LEAST_SCORE), 1)
                scores = (steps * LEAST_SCORE).astype(np.float32)
                documents_file.append(documents)
                scores_file.append(scores)
                firsts, lasts = _blocks(with_word[begin:end])
                last_file.append(documents[lasts])
                best_file.append(np.maximum.reduceat(scores, firsts))
                progress(f"{documents_file.length / self.postings:.0%} of {self.postings:,} postings scored")

    def _write_parameters(self, out: Path) -> None:
        parameters = {
            "k1": self._bm25.k1,
            "b": self._bm25.b,
            "delta": 0.5,
            "method": "lucene",
            "idf_method": "lucene",
            "dtype": "float32",
            "int_dtype": "int32",
            "num_docs": len(self._lengths),
            "backend": "numba",
        }
        (out / BM25S_PARAMETERS).write_text(json.dumps(parameters, indent=1) + "\n", encoding="utf-8")


def _ranges(with_word: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Ranges of words of at most so many postings, or of one word."""
    ends = np.cumsum(with_word)
    ranges = []
    begin, written = 0, 0
    while begin < len(ends):
        end = max(begin + 1, int(np.searchsorted(ends, written + most, side="right")))
        ranges.append((begin, end))
        begin, written = end, int(ends[end - 1])
    return ranges


def _merged(runs: Sequence[_Run], begin: int, end: int, with_word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Documents and counts of the words from `begin` to `end`, the documents of each word in order."""
    heads = np.cumsum(with_word) - with_word  # where the next posting of each word goes
    documents = np.empty(int(with_word.sum()), np.int32)
    counts = np.empty(len(documents), np.int32)
    for run in runs:
        words, held, of_run, counts_of_run = run.take(end)
        before = np.cumsum(held) - held
        places = np.repeat(heads[words - begin] - before, held) + np.arange(len(of_run))
        documents[places] = of_run
        counts[places] = counts_of_run
        heads[words - begin] += held
    return documents, counts


def _blocks(with_word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last posting of each block of each word's list."""
    blocks = -(-with_word // BLOCK)
    begins = np.repeat(np.cumsum(with_word) - with_word, blocks)
    ends = np.repeat(np.cumsum(with_word), blocks)
    within = np.arange(len(begins)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    firsts = begins + within * BLOCK
    return firsts, np.minimum(firsts + BLOCK, ends) - 1


def _blocks_fit(starts: np.ndarray, block_starts: np.ndarray) -> bool:
    """Whether each word has just the blocks that its postings fill."""
    for first in range(0, len(starts) - 1, _CHECKED):
        part = slice(first, first + _CHECKED + 1)
        blocks = (np.diff(starts[part]) + (BLOCK - 1)) // BLOCK
        if not np.array_equal(np.diff(block_starts[part]), blocks):
            return False
    return True


def open_postings(folder: Path, words: int, postings: int) -> Postings:
    """The lists as memory maps. Raises IndexFolderError, also where they would have a search look outside."""
    starts = open_offsets(folder / STARTS, words + 1)
    must_end_at(starts, folder / STARTS, postings, f"length of {POSTED}; build the index again")
    block_starts = open_offsets(folder / BLOCK_STARTS, words + 1)
    if not _blocks_fit(starts, block_starts):
        raise IndexFolderError(
            f"{folder / BLOCK_STARTS} or {STARTS} is damaged: they are of different lists; build the index again"
        )
    blocks = int(block_starts[-1])
    return Postings(
        open_array(folder / POSTED, "<i4", postings),
        open_array(folder / SCORES, "<f4", postings),
        starts,
        block_starts,
        open_array(folder / BLOCK_LAST, "<i4", blocks),
        open_array(folder / BLOCK_BEST, "<f4", blocks),
    )
