"""Dense search: the nearest documents by the vectors of a sentence encoder. An extra, beside an index of words.

The vectors lie in the index folder, whose documents are searched. faiss looks them up; without it numpy compares a
query with every vector, which is as exact as faiss's "Flat" and slower.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np

from megatron_empg.common.files import aside_of, put_in_place, put_text
from megatron_empg.environments.blocking import in_thread
from megatron_empg.environments.deep_search.search import observations
from megatron_empg.environments.deep_search.search.arrays import ArrayWriter, open_array
from megatron_empg.environments.deep_search.search.bm25_index import LONGEST_QUERY, Hit
from megatron_empg.environments.deep_search.search.encoder import Encoder, Engine
from megatron_empg.environments.deep_search.search.errors import (
    IndexFolderError,
    MissingPackageError,
    disk_errors_named,
)
from megatron_empg.environments.deep_search.search.index_tools import refuse_long
from megatron_empg.environments.deep_search.search.manifest import IndexManifest, file_digest
from megatron_empg.environments.deep_search.search.passages import Passages
from megatron_empg.environments.deep_search.search.result_limits import MOST_RESULTS, ResultLimits

ENGINES: tuple[Engine, ...] = get_args(Engine)
VECTORS, SETTINGS = "dense.vectors.npy", "dense.json"
_REMEDY = "make the vectors again: empg index … --encoder FOLDER"
BATCH = 64
COMPARED = 1 << 16
"""Vectors that are compared with a query, or added to faiss, at once."""


def build_dense(folder: Path, encoder: Encoder, progress: Callable[[str], None] = print) -> None:
    """Write the vectors of all documents into an index folder; 4 bytes per document and dimension.

    Those of the same encoder that are there already are left as they are. The settings are written last: vectors
    without them, or with torn ones, are taken for unfinished and made anew. Raises IndexFolderError.
    """
    with disk_errors_named(Path(folder)):
        _build(Path(folder), encoder, progress)


def verify_vectors(folder: Path) -> None:
    """Read the vectors of an index folder whole and compare them with their checksum; a folder may have none.

    Raises IndexFolderError for vectors that are not those that were made.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).exists() and not (folder / VECTORS).exists():
        return
    wanted = _Settings.read(folder).sha256
    try:
        found = file_digest(folder / VECTORS)
    except OSError as error:
        raise IndexFolderError(f"{folder / VECTORS} cannot be read ({error.strerror}); {_REMEDY}") from error
    if found != wanted:
        raise IndexFolderError(
            f"{folder / VECTORS} is not the file that was made (SHA-256 {found}, not {wanted}): remove {SETTINGS} "
            f"there and {_REMEDY}"
        )


def _build(folder: Path, encoder: Encoder, progress: Callable[[str], None]) -> None:
    passages = Passages(folder, IndexManifest.read(folder).documents)
    if _finished(folder, encoder, len(passages)):
        progress(f"{folder}: the vectors are there already")
        return
    (folder / SETTINGS).unlink(missing_ok=True)
    aside = aside_of(folder / VECTORS)
    dimension = _write_vectors(aside, passages, encoder, progress)
    digest = file_digest(aside)
    put_in_place(aside, folder / VECTORS)
    settings = {"encoder": encoder.name, "dimension": dimension, "documents": len(passages), "sha256": digest}
    put_text(folder / SETTINGS, json.dumps(settings, ensure_ascii=False) + "\n")


def _write_vectors(path: Path, passages: Passages, encoder: Encoder, progress: Callable[[str], None]) -> int:
    """Returns their dimension."""
    dimension = 0
    with ArrayWriter(path, "<f4") as writer:
        for first in range(0, len(passages), BATCH):
            batch = [passages[number] for number in range(first, min(first + BATCH, len(passages)))]
            vectors = encoder.passages([f"{passage.title}\n{passage.text}" for passage in batch])
            _check(vectors, len(batch), dimension)
            dimension = vectors.shape[1]
            writer.append(vectors.reshape(-1))
            if first // BATCH % 100 == 0:
                progress(f"{first + len(batch):,} of {len(passages):,} documents encoded")
    return dimension


def _finished(folder: Path, encoder: Encoder, documents: int) -> bool:
    """Whether the folder has whole vectors of the encoder. Raises IndexFolderError for those of another."""
    try:
        settings = _Settings.read(folder)
    except IndexFolderError:
        return False
    settings.must_be_of(encoder, folder)
    try:
        _open_vectors(folder, documents, settings.dimension)
    except IndexFolderError:
        return False
    return True


def _open_vectors(folder: Path, documents: int, dimension: int) -> np.ndarray:
    """[document, dimension], mapped. Raises IndexFolderError."""
    values = open_array(folder / VECTORS, "<f4", documents * dimension, _REMEDY)
    return values.reshape(-1, dimension)


class _Nearest(Protocol):
    """Finds vectors."""

    def __call__(self, query: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """(numbers, inner products) of the nearest, nearest first."""
        ...


class DenseIndex:
    """Nearest documents of an index folder that `build_dense` completed. Any thread may search."""

    def __init__(self, folder: Path, encoder: Encoder, engine: Engine = "faiss") -> None:
        """`faiss` takes the vectors into memory. Raises IndexFolderError, MissingPackageError or ValueError."""
        if engine not in ENGINES:
            raise ValueError(f"engine is {engine!r}; allowed: {', '.join(ENGINES)}")
        folder = Path(folder)
        settings = _Settings.read(folder)
        settings.must_be_of(encoder, folder)
        self.passages = Passages(folder, IndexManifest.read(folder).documents)
        vectors = _open_vectors(folder, len(self.passages), settings.dimension)
        self._encoder = encoder
        self._nearest: _Nearest = _Faiss(vectors) if engine == "faiss" else _Compared(vectors)

    def search(self, query: str, top_k: int = 3) -> list[Hit]:
        """The nearest documents, nearest first. Raises ValueError for a query over `LONGEST_QUERY`."""
        if not 1 <= top_k <= MOST_RESULTS:
            raise ValueError(f"top_k is {top_k}; it lies between 1 and {MOST_RESULTS}")
        if len(query) > LONGEST_QUERY:
            raise ValueError(f"the query has {len(query)} characters , more than {LONGEST_QUERY}")
        vector = self._encoder.queries([query])[0]
        numbers, products = self._nearest(vector, min(top_k, len(self.passages)))
        hits = []
        for number, product in zip(numbers.tolist(), products.tolist(), strict=True):
            passage = self.passages[number]
            hits.append(Hit(passage.title, passage.text, product, passage.id))
        return hits


class DenseTools:
    """`Tools` over a `DenseIndex`."""

    def __init__(self, index: DenseIndex, shown: ResultLimits | None = None) -> None:
        self._index = index
        self._shown = shown or ResultLimits()

    async def search(self, query: str) -> str:
        refuse_long("search", query)
        return await in_thread(self._searched, query)

    async def visit(self, title: str) -> str:
        refuse_long("visit", title)
        return observations.page(await in_thread(self._index.passages.page, title))

    async def close(self) -> None:
        """The vectors go with the process."""

    def _searched(self, query: str) -> str:
        return observations.results(self._index.search(query, self._shown.top_k), query, self._shown)


class _Compared:
    """Every vector with the query, by numpy; of equally near ones the first comes first."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def __call__(self, query: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        products = np.concatenate([block @ query for block in _blocks(self._vectors)])
        best = np.lexsort((np.arange(len(products)), -products))[:top_k]
        return best, products[best]


class _Faiss:
    """faiss's exact index of inner products."""

    def __init__(self, vectors: np.ndarray) -> None:
        try:
            import faiss
        except ImportError:
            raise MissingPackageError(
                "dense search needs the package faiss-cpu: pip install faiss-cpu; or let numpy compare, which is "
                "exact too and slower: encoder: {path: FOLDER, engine: numpy}"
            ) from None
        self._index: Any = faiss.IndexFlatIP(vectors.shape[1])
        for block in _blocks(vectors):
            self._index.add(np.ascontiguousarray(block))

    def __call__(self, query: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        products, numbers = self._index.search(query[None].astype(np.float32), top_k)
        return numbers[0], products[0]


def _blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(vectors), COMPARED):
        yield vectors[first : first + COMPARED]


def _check(vectors: np.ndarray, count: int, dimension: int) -> None:
    """Raises ValueError for what an encoder must not give."""
    if vectors.ndim != 2 or len(vectors) != count or (dimension and vectors.shape[1] != dimension):
        raise ValueError(f"the encoder gave {vectors.shape} for {count} texts of dimension {dimension or 'any'}")
    if not np.isfinite(vectors).all():
        raise ValueError("the encoder gave a vector that is not finite")


@dataclass(frozen=True)
class _Settings:
    """What the vectors of a folder are."""

    encoder: str
    dimension: int
    sha256: str
    """Of the vectors' file."""

    @classmethod
    def read(cls, folder: Path) -> _Settings:
        """Raises IndexFolderError for settings that are not there or not whole."""
        path = folder / SETTINGS
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            name, dimension, digest = content["encoder"], content["dimension"], content["sha256"]
        except FileNotFoundError:
            raise IndexFolderError(f"{folder} has no vectors; make them: empg index … --encoder FOLDER") from None
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise IndexFolderError(f"{path} cannot be read ({error!r:.200}); {_REMEDY}") from error
        if isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 1:
            raise IndexFolderError(f"{path}: the dimension is {dimension!r:.40}; {_REMEDY}")
        return cls(str(name), dimension, str(digest))

    def must_be_of(self, encoder: Encoder, folder: Path) -> None:
        """Raises IndexFolderError for vectors of another encoder."""
        if self.encoder != encoder.name:
            raise IndexFolderError(
                f"{folder} has vectors of {self.encoder!r}, not of {encoder.name!r}; take that encoder, or remove "
                f"{SETTINGS} there and make the vectors again"
            )
