"""Files and folders that others see whole or not at all: written beside their place and renamed into it.

The standard library of Python 3.9 is all it needs.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def put_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file as a whole. What UTF-8 has no letter for is written as a backslash and its number.

    `durable`: bring it to disk before it is renamed, so that it outlives a loss of power. Raises OSError.
    """
    put_bytes(path, text.encode("utf-8", errors="backslashreplace"), durable=durable)


def put_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write bytes the way `put_text` writes text."""
    with written_aside(path, durable=durable) as aside:
        aside.write_bytes(content)


def put_json(path: Path, value: Any, *, indent: int | None = None, durable: bool = True) -> None:
    """Write JSON the way `put_text` writes text, with a newline at the end."""
    put_text(path, json.dumps(value, indent=indent) + "\n", durable=durable)


@contextmanager
def written_aside(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Where to write a file, in the same folder; leaving the context renames it to `path`, an error removes it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        put_in_place(aside, path, durable=durable)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise


def put_in_place(aside: Path, path: Path, *, durable: bool = True) -> None:
    """Rename a file that is whole, over one that may be there, whose mode it takes on. Raises OSError."""
    with suppress(OSError):  # there is none, or its file system has no modes
        aside.chmod(stat.S_IMODE(path.stat().st_mode))
    if durable:
        sync(aside)
    aside.replace(path)


def aside_of(path: Path) -> Path:
    """Where something is made that takes long, so that whoever makes it again finds what an earlier one left."""
    return path.with_name(f"{path.name}.writing")


def sync(path: Path) -> None:
    """Bring a file's content, or the names of a folder's files, to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
