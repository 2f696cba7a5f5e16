"""The search of an index folder: memory-mapped, opened at once, by any number of threads and processes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_empg.environments.deep_search.search.arrays import open_offsets
from megatron_empg.environments.deep_search.search.errors import IndexFolderError
from megatron_empg.environments.deep_search.search.manifest import IndexManifest
from megatron_empg.environments.deep_search.search.passages import Passages, TitlePage
from megatron_empg.environments.deep_search.search.postings_build import (
    WORD_OFFSETS,
    WORD_TABLE,
    WORDS,
    open_postings,
)
from megatron_empg.environments.deep_search.search.result_limits import MOST_RESULTS
from megatron_empg.environments.deep_search.search.string_table import HashTable
from megatron_empg.environments.deep_search.search.top_k import DamagedPostingsError, Postings, best_documents
from megatron_empg.environments.deep_search.search.words import WordRules, WordSplitter

LONGEST_QUERY = 4_000
"""Characters. What is longer is no query, and could have every word of the index looked up."""


@dataclass(frozen=True)
class Hit:
    """One document found."""

    title: str
    text: str
    score: float
    id: str


class SearchIndex:
    """BM25 over an index that `build_index` made. Any thread may search.

    Example::

        index = SearchIndex.open(Path("wiki"))
        best = index.search("who wrote the hobbit", top_k=3)
        page = index.page(best[0].title)
    """

    def __init__(
        self,
        folder: Path,
        manifest: IndexManifest,
        passages: Passages,
        postings: Postings,
        vocabulary: IndexVocabulary,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.passages = passages
        self.postings = postings
        self.vocabulary = vocabulary
        self._words = WordSplitter(WordRules(manifest.stop_words))  # type: ignore[arg-type]

    @classmethod
    def open(cls, folder: Path) -> SearchIndex:
        """Map the folder's files, and check those that say where the others' contents lie.

        Raises IndexFolderError for one that is not there, not whole, or would have a search look outside of the
        others. What checksums alone can find, `manifest.verify_files` does.
        """
        folder = Path(folder)
        manifest = IndexManifest.read(folder)
        index = cls(
            folder,
            manifest,
            Passages(folder, manifest.documents),
            open_postings(folder, manifest.words, manifest.postings),
            IndexVocabulary(folder, manifest.words),
        )
        index.best(np.zeros(0, np.int64), np.zeros(0), 1)  # has the machine code loaded, or made
        return index

    def __len__(self) -> int:
        return self.manifest.documents

    def search(self, query: str, top_k: int = 3) -> list[Hit]:
        """The best documents, best first; of equal ones the first of the corpus first. Fewer than `top_k`, or
        none, where fewer hold a word of the query. Raises ValueError for a query over `LONGEST_QUERY`."""
        if not 1 <= top_k <= MOST_RESULTS:
            raise ValueError(f"top_k is {top_k}; it lies between 1 and {MOST_RESULTS}")
        numbers, scores = self.best(*self.query_words(query), top_k)
        hits = []
        for number, score in zip(numbers.tolist(), scores.tolist(), strict=True):
            passage = self.passages[number]
            hits.append(Hit(passage.title, passage.text, score, passage.id))
        return hits

    def query_words(self, query: str) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of the words that the index knows, how often the query says each)."""
        if len(query) > LONGEST_QUERY:
            raise ValueError(f"the query has {len(query)} characters , more than {LONGEST_QUERY}")
        counts: Counter[int] = Counter()
        for word in self._words(query):
            number = self.vocabulary.number(word)
            if number is not None:
                counts[number] += 1
        return np.array(list(counts), np.int64), np.array(list(counts.values()), np.float64)

    def best(self, words: np.ndarray, counts: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """(document numbers, scores), best first. Raises IndexFolderError for lists that are damaged."""
        try:
            return best_documents(self.postings, words, counts, len(self), top_k)
        except DamagedPostingsError as error:
            raise IndexFolderError(f"{self.folder}: {error}; build the index again") from None

    def page(self, title: str) -> TitlePage | None:
        """The page of a title: its first document, and those right behind that are of the same title. Case, blanks
        and Unicode's compatible forms do not matter."""
        return self.passages.page(title)


class IndexVocabulary:
    """Numbers of the words of an index, on disk."""

    def __init__(self, folder: Path, words: int) -> None:
        """Raises IndexFolderError."""
        self._offsets = open_offsets(folder / WORD_OFFSETS, words + 1)
        self._table = HashTable.open(folder, WORD_TABLE, words)
        path = folder / WORDS
        if not path.is_file() or path.stat().st_size != self._offsets[-1]:
            raise IndexFolderError(
                f"{path} does not hold {self._offsets[-1]} bytes, as {WORD_OFFSETS} says; build the index again"
            )
        self._text = np.memmap(path, np.uint8, "r") if words else np.zeros(0, np.uint8)

    def number(self, word: str) -> int | None:
        """None for a word that no document holds."""
        for number in self._table.candidates(word):
            begin, end = self._offsets[number : number + 2]
            if self._text[begin:end].tobytes() == word.encode("utf-8", "surrogatepass"):
                return number
        return None
