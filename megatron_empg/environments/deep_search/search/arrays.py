"""Arrays on disk: written block by block in order, opened as memory maps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from megatron_empg.environments.deep_search.search.errors import IndexFolderError

_HEADER = 128
"""Bytes before the values. A header of format 1.0 is filled up with blanks to a multiple of 64."""


_CHECKED = 1 << 18
"""Values that are checked at once: they fit the second cache of a core."""


class ArrayWriter:
    """Context: appends to a .npy file of one dimension; its length is written at the end.

    Values go through plain writes, never through a memory map: on a full disk those raise OSError, a map kills.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.path = path
        self.length = 0
        self._dtype = np.dtype(dtype)

    def __enter__(self) -> ArrayWriter:
        self._file = self.path.open("wb")
        self._file.write(bytes(_HEADER))
        return self

    def append(self, values: np.ndarray) -> None:
        """Write values behind those written so far."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self.length += len(values)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write_header()
        finally:
            self._file.close()

    def _write_header(self) -> None:
        described = f"{{'descr': '{self._dtype.str}', 'fortran_order': False, 'shape': ({self.length},), }}"
        head = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little")
        self._file.seek(0)
        self._file.write(head + described.ljust(_HEADER - 11).encode("latin-1") + b"\n")


def write_array(path: Path, values: np.ndarray) -> None:
    """Write a whole array of one dimension."""
    with ArrayWriter(path, values.dtype.str) as writer:
        writer.append(values)


def open_array(
    path: Path, dtype: str, length: int | None = None, remedy: str = "build the index again"
) -> np.ndarray:
    """A memory map of an array, read only. Raises IndexFolderError, with a remedy, for what is no such array."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IndexFolderError(f"{path} cannot be opened ({error}); {remedy}") from error
    if found.dtype != np.dtype(dtype) or found.ndim != 1 or (length is not None and len(found) != length):
        expected = "any number of"
        if length is not None:
            expected = f"{length}"
        raise IndexFolderError(
            f"{path} holds {found.shape} values of {found.dtype}, not {expected} of {dtype}; {remedy}"
        )
    plain: np.ndarray = found.view(np.ndarray)
    return plain


def must_rise(values: np.ndarray, path: Path) -> None:
    """Raises IndexFolderError for an array of a file of which a value is below the one before it."""
    for block in _blocks(values, overlap=1):
        if (block[1:] < block[:-1]).any():
            raise IndexFolderError(f"{path} is damaged: its values do not rise; build the index again")


def open_offsets(path: Path, length: int) -> np.ndarray:
    """So many offsets, which begin at 0 and rise. Reads them all. Raises IndexFolderError."""
    offsets = open_array(path, "<i8", length)
    if len(offsets) == 0 or offsets[0] != 0:
        raise IndexFolderError(f"{path} is damaged: its offsets do not begin at 0; build the index again")
    must_rise(offsets, path)
    return offsets


def must_end_at(offsets: np.ndarray, path: Path, end: int, what: str) -> None:
    """Raises IndexFolderError for offsets of a file that do not lead to the end of what they are offsets of."""
    if offsets[-1] != end:
        raise IndexFolderError(f"{path} is damaged: it ends at {offsets[-1]}, not at {end}, the {what}")


def must_lie_below(values: np.ndarray, path: Path, limit: int) -> None:
    """Raises IndexFolderError for an array of a file with a value that is negative or not below `limit`."""
    for block in _blocks(values):
        if len(block) and not 0 <= block.min() <= block.max() < limit:
            raise IndexFolderError(
                f"{path} is damaged: it holds numbers that are not below {limit}; build the index again"
            )


def _blocks(values: np.ndarray, overlap: int = 0) -> Iterator[np.ndarray]:
    """The array in parts, so that a check of it takes little memory."""
    for first in range(0, len(values), _CHECKED):
        yield values[first : first + _CHECKED + overlap]
