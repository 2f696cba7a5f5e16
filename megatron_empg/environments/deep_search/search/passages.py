"""The documents themselves: in one file, found by an array of offsets, and by their titles."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from megatron_empg.environments.deep_search.search.arrays import ArrayWriter, open_offsets
from megatron_empg.environments.deep_search.search.corpus_lines import Passage
from megatron_empg.environments.deep_search.search.errors import IndexFolderError
from megatron_empg.environments.deep_search.search.string_table import HashTable, text_hash
from megatron_empg.environments.deep_search.text import normalise_title

TEXTS = "documents.txt"
OFFSETS = "documents.offsets.npy"
TITLES = "titles"
MOST_PASSAGES_OF_A_PAGE = 4096


@dataclass(frozen=True)
class TitlePage:
    """What stands under one title: the texts of its passages, one behind the other."""

    title: str
    text: str


class PassageWriter:
    """Context: appends passages, then writes the table of their titles. Takes 8 bytes of memory per passage."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._title_hashes: list[np.ndarray] = []
        self._pending: list[int] = []
        self._ends: list[int] = []
        self._end = 0
        self._last_title = ""
        self.count = 0
        self.continued = 0
        """Passages that go on under the title of the one before."""
        self.repeated = 0
        """Passages, or runs of them, whose title stood earlier. A visit shows the first."""

    def __enter__(self) -> PassageWriter:
        self._documents = (self._folder / TEXTS).open("wb", buffering=1 << 20)
        self._offsets = ArrayWriter(self._folder / OFFSETS, "<i8").__enter__()
        self._offsets.append(np.zeros(1))
        return self

    def append(self, passage: Passage) -> None:
        """Write one passage behind the others."""
        stored = f"{passage.id}\n{passage.title}\n{passage.text}".encode()
        self._documents.write(stored)
        self._end += len(stored)
        self.count += 1
        self._ends.append(self._end)
        title = normalise_title(passage.title)
        self.continued += title == self._last_title and self.count > 1
        self._last_title = title
        self._pending.append(text_hash(title))
        if len(self._pending) == 1 << 16:
            self._settle()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._settle()
        self._documents.close()
        self._offsets.__exit__(kind, error, trace)
        if kind is None:
            hashes = np.concatenate([np.zeros(0, np.uint64), *self._title_hashes])
            self.repeated = self.count - self.continued - len(np.unique(hashes))
            HashTable.write(self._folder, TITLES, hashes)

    def _settle(self) -> None:
        self._title_hashes.append(np.array(self._pending, np.uint64))
        self._pending.clear()
        self._offsets.append(np.array(self._ends, np.int64))
        self._ends.clear()


class Passages:
    """All passages by number, memory-mapped. Any thread may read."""

    def __init__(self, folder: Path, count: int) -> None:
        """Raises IndexFolderError."""
        self._offsets = open_offsets(folder / OFFSETS, count + 1)
        self._titles = HashTable.open(folder, TITLES, count)
        self._path = path = folder / TEXTS
        if not path.is_file() or path.stat().st_size != self._offsets[-1]:
            raise IndexFolderError(
                f"{path} does not hold {self._offsets[-1]} bytes, as {OFFSETS} says; build the index again"
            )
        with path.open("rb") as file:
            self._documents = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if count else b""

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> Passage:
        if not 0 <= number < len(self):
            raise IndexError(number)
        begin, end = self._offsets[number : number + 2]
        try:
            identity, title, text = self._documents[begin:end].decode("utf-8").split("\n", 2)
        except ValueError:  # no UTF-8, or too few lines
            raise IndexFolderError(
                f"{self._path} is damaged at document {number}; build the index again"
            ) from None
        return Passage(identity, title, text)

    def __iter__(self) -> Iterator[Passage]:
        for number in range(len(self)):
            yield self[number]

    def page(self, title: str) -> TitlePage | None:
        """The page of a title: its first passage, and those right behind that are of the same title. Case, blanks
        and Unicode's compatible forms do not matter."""
        found = [self[number] for number in self.numbers_of(title)]
        if not found:
            return None
        return TitlePage(found[0].title, "\n".join(passage.text for passage in found))

    def numbers_of(self, title: str) -> range:
        """The passages of the page of a title: the first that has it and those right behind that have it too."""
        wanted = normalise_title(title)
        for first in self._titles.candidates(wanted):
            if normalise_title(self[first].title) == wanted:
                return range(first, self._end_of_page(first, wanted))
        return range(0)

    def _end_of_page(self, first: int, title: str) -> int:
        end = first + 1
        furthest = min(len(self), first + MOST_PASSAGES_OF_A_PAGE)
        while end < furthest and normalise_title(self[end].title) == title:
            end += 1
        return end
