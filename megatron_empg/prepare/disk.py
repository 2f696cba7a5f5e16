"""Room on the disk: looked at before, and named when it runs out all the same."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_empg.common.files import put_text
from megatron_empg.prepare.errors import PrepareError

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota is used up",
    errno.EFBIG: "files may not grow so large",
}


def free_bytes(folder: Path) -> int:
    """Free bytes of the file system that `folder` is, or will be, on."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


@contextmanager
def named_disk_faults(path: Path) -> Iterator[None]:
    """What the operating system refuses while `path` is written becomes a PrepareError that says so."""
    try:
        yield
    except OSError as error:
        what = _FULL.get(error.errno or 0)
        if what is None:
            raise PrepareError(f"cannot write {error.filename or path}: {error.strerror or error}") from error
        free = free_bytes(path.parent) / 1e9
        raise PrepareError(
            f"{what} while {path} was written ({free:.2f} GB free there): make room, or give another DIR, and run "
            "the same command again; it goes on where this one ended"
        ) from error


def write_aside(path: Path, text: str) -> None:
    """Replace a file as a whole, its folder made where there is none. Raises PrepareError."""
    with named_disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        put_text(path, text)
