"""Arrays on disk: written block by block in order, opened as memory maps."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

from megatron_empg.environments.deep_search.search.errors import IndexFolderError

_HEADER = 128
"""Bytes before the values. A header of format 1.0 is filled up with blanks to a multiple of 64."""


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
        expected = "any number of" if length is None else f"{length}"
        raise IndexFolderError(
            f"{path} holds {found.shape} values of {found.dtype}, not {expected} of {dtype}; {remedy}"
        )
    plain: np.ndarray = found.view(np.ndarray)
    return plain
