"""Texts to numbers, on disk: millions of them without a dictionary in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from megatron_empg.environments.deep_search.search.arrays import must_lie_below, must_rise, open_array, write_array


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b: the same in every process and on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class HashTable:
    """Which numbers a text may have: those of its hash, in ascending order. Whoever asks compares the texts."""

    def __init__(self, hashes: np.ndarray, numbers: np.ndarray) -> None:
        self._hashes = hashes
        self._numbers = numbers

    @classmethod
    def open(cls, folder: Path, name: str, length: int) -> HashTable:
        """The table of `length` texts. Reads it whole. Raises IndexFolderError."""
        hashes_path, numbers_path = folder / f"{name}.hashes.npy", folder / f"{name}.numbers.npy"
        hashes = open_array(hashes_path, "<u8", length)
        must_rise(hashes, hashes_path)
        numbers = open_array(numbers_path, "<i4", length)
        must_lie_below(numbers, numbers_path, length)
        return cls(hashes, numbers)

    @staticmethod
    def write(folder: Path, name: str, hashes: np.ndarray) -> None:
        """Write the table of texts whose numbers are 0, 1, …; takes 28 bytes of memory per text."""
        order = np.argsort(hashes, kind="stable")
        write_array(folder / f"{name}.hashes.npy", hashes[order])
        write_array(folder / f"{name}.numbers.npy", order.astype("<i4"))

    def candidates(self, text: str) -> Iterable[int]:
        """Numbers of all texts of the same hash, the first one first. Mostly one or none."""
        wanted = np.uint64(text_hash(text))
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            yield int(self._numbers[place])
            place += 1
