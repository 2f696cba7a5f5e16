"""BM25 over titles and texts, in which a question's entity decides what is found.

Plain BM25 answers a misspelled entity with some page that shares the relation's words ("capital parsi"
finds any capital), and the agent goes on with a fact about something else. Here the words that name
relations and sections only order what the other words found; where those find nothing, nothing is found.
The pages of an entity named in full come before all others ("new york" before "east new york").
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from megatron_empg.environments.deep_search.corpus import Corpus, Document
from megatron_empg.environments.deep_search.search.errors import MissingPackageError
from megatron_empg.environments.deep_search.text import words

_STOP_WORDS = frozenset({"a", "an", "the", "of", "is", "in", "what"})
_TITLE_WEIGHT = 2  # how many times a title's words count, as against once in the text
_CACHE_SIZE = 1 << 17
# A word standing in this share of the pages names a relation or a section, whatever else it may name.
_COMMON_SHARE = 0.01


class Retriever:
    """BM25 (bm25s, Lucene's variant) over one corpus; results are cached by the query's words."""

    def __init__(self, corpus: Corpus, *, k1: float = 1.2, b: float = 0.5):
        try:
            import bm25s
        except ImportError as error:
            raise MissingPackageError(f"search needs the package bm25s: pip install bm25s ({error})") from None

        self._documents = corpus.documents
        pages = [self._page_words(document) for document in self._documents]
        self._ordering_only = self._relation_words(corpus)
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
        self._index.index(pages, show_progress=False)
        self._vocabulary: dict[str, int] = self._index.vocab_dict
        self._pages_of: dict[frozenset[str], list[int]] = {}
        for position, document in enumerate(corpus.documents):
            self._pages_of.setdefault(self._deciding(words(document.entity)), []).append(position)
        self._cache: dict[tuple[str, ...], tuple[Document, ...]] = {}

    def _deciding(self, found: Iterable[str]) -> frozenset[str]:
        return frozenset(found) - self._ordering_only - _STOP_WORDS

    @staticmethod
    def _page_words(document: Document) -> list[str]:
        found = words(document.title) * _TITLE_WEIGHT + words(document.text)
        return [word for word in found if word not in _STOP_WORDS]

    @staticmethod
    def _relation_words(corpus: Corpus) -> frozenset[str]:
        """Words of relation names, and words that titles add to an entity's name on many pages."""
        found = {word for relation in corpus.relations for word in words(relation)}
        added: Counter[str] = Counter()
        for document in corpus.documents:
            added.update(set(words(document.title)) - set(words(document.entity)))
        least = _COMMON_SHARE * len(corpus.documents)
        return frozenset(found | {word for word, count in added.items() if count >= least})

    def search(self, query: str) -> tuple[Document, ...]:
        """The best two documents, best first; fewer, or none, where fewer hold a word of the query."""
        key = tuple(sorted(set(words(query)) - _STOP_WORDS))
        if key not in self._cache:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            self._cache[key] = self._search(key)
        return self._cache[key]

    def _scores(self, found: Iterable[str]) -> np.ndarray:
        return self._index.get_scores([self._vocabulary[word] for word in found])

    def _search(self, query: tuple[str, ...]) -> tuple[Document, ...]:
        known = [word for word in query if word in self._vocabulary]
        deciding = [word for word in known if word not in self._ordering_only]
        if not deciding:
            return ()
        candidates = np.flatnonzero(self._scores(deciding))
        scores = self._scores(known)[candidates]
        named = np.isin(candidates, self._pages_of.get(self._deciding(query), []))
        best = np.lexsort((candidates, -scores, ~named))[:2]
        return tuple(self._documents[int(candidates[i])] for i in best)
