"""Files of JSON lines, compressed by gzip or not, one line at a time in memory."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron_empg.common.errors import EmpgError

LONGEST_LINE = 64 << 20
"""Bytes of one line. A longer one is no record: the file is of another kind, and would fill the memory."""
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)


class LineFault(EmpgError, ValueError):
    """What is wrong with a line; `line` is None where the whole file is at fault."""

    def __init__(self, line: int | None, fault: str) -> None:
        super().__init__(fault if line is None else f"line {line}: {fault}")
        self.line = line
        self.fault = fault


def is_compressed(file: io.BufferedReader[Any]) -> bool:
    """Whether what comes next in a file is gzip's; nothing is read."""
    return file.peek(len(_GZIP)).startswith(_GZIP)


@contextmanager
def unpacked(file: io.BufferedReader[Any]) -> Iterator[io.BufferedReader[Any]]:
    """The bytes behind compression and byte-order mark. Damage met while they are read raises LineFault."""
    plain = file
    if is_compressed(file):
        packed: Any = gzip.GzipFile(fileobj=file)
        plain = io.BufferedReader(packed, 1 << 20)
    try:
        if plain.peek(len(_BOM)).startswith(_BOM):
            plain.read(len(_BOM))
        yield plain
    except _DAMAGE as error:
        raise LineFault(None, _damaged(error)) from None


def json_lines(plain: io.BufferedReader[Any]) -> Iterator[tuple[int, Any]]:
    """(number of the line, its value), blank lines left out. A line ends with a newline and nothing else.

    Raises LineFault.
    """
    for number, line in _lines(plain):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            fault = f"it is not UTF-8 ({error.reason} at byte {error.start + 1}); convert the file to it"
            raise LineFault(number, fault) from None
        except RecursionError:
            raise LineFault(number, "it is not JSON that can be read: it is nested too deeply") from None
        except ValueError as error:
            raise LineFault(number, f"it is not JSON ({error})") from None
        yield number, value


def _lines(plain: io.BufferedReader[Any]) -> Iterator[tuple[int, bytes]]:
    number = 0
    while True:
        number += 1
        try:
            line = plain.readline(LONGEST_LINE + 1)
        except _DAMAGE as error:
            raise LineFault(number, _damaged(error)) from None
        if not line:
            return
        if len(line) > LONGEST_LINE:
            raise LineFault(number, f"it has over {LONGEST_LINE} bytes; a line holds one record")
        yield number, line


def _damaged(error: Exception) -> str:
    return f"the compressed data is cut off or damaged here ({error}); fetch the file again"
