"""What can be wrong with a corpus, an index or the packages that search needs."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_empg.common.errors import EmpgError


class SearchError(EmpgError, ValueError):
    """The base of faults that whoever starts the search can fix. The text says how. A ValueError, as a task
    source may raise it."""


class CorpusError(SearchError):
    """A corpus that cannot be read. The text names file, line and field."""


class IndexFolderError(SearchError):
    """An index that is not there, is not whole, or cannot be written."""


@contextmanager
def disk_errors_named(folder: Path) -> Iterator[None]:
    """Around the writing of a folder: an OSError becomes IndexFolderError, which names the file and the cause."""
    try:
        yield
    except OSError as error:
        told = (error.strerror or str(error)).lower()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise IndexFolderError(f"{folder}: {told}; free some, or name a folder on another disk") from error
        place = ""
        if error.filename not in (None, str(folder)):
            place = f" ({error.filename})"
        raise IndexFolderError(f"{folder} cannot be written: {told}{place}") from error


class MissingPackageError(SearchError):
    """An extra that is not installed. The text names what to install."""
