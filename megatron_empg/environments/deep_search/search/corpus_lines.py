"""The documents of a corpus file: JSON lines, compressed by gzip or not, read once and in order.

A line is {"id", "contents": "Title\\nbody"}, as the public dumps of Wikipedia's passages have it, or
{"id", "title", "text"}. The id may be left out; the document's number takes its place.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from megatron_empg.environments.deep_search.json_lines import LineFault, is_compressed, json_lines, unpacked
from megatron_empg.environments.deep_search.search.errors import CorpusError


class Passage(NamedTuple):
    """One document. `title` is one line without blanks at its ends; `text` may hold anything, or nothing."""

    id: str
    title: str
    text: str


class CorpusFile:
    """Iterates over the passages of a file. Afterwards `sha256` is that of the file as it lies on disk.

    Raises CorpusError naming file, line and field.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise CorpusError(f"no corpus at {path}; give a file of JSON lines, which may be compressed by gzip")
        self.size = self.path.stat().st_size
        with self.path.open("rb") as file:
            self.compressed = is_compressed(file)
        self._hash = hashlib.sha256()
        self._read = 0

    @property
    def sha256(self) -> str:
        """The sha256 of all bytes read so far."""
        return self._hash.hexdigest()

    @property
    def share_read(self) -> float:
        """How far reading has come, from 0 to 1."""
        return self._read / max(self.size, 1)

    def __iter__(self) -> Iterator[Passage]:
        self._hash, self._read = hashlib.sha256(), 0
        count = 0
        try:
            with self.path.open("rb", buffering=0) as raw:
                counted = io.BufferedReader(_Counted(self, raw), 1 << 20)
                with unpacked(counted) as plain:
                    for number, row in json_lines(plain):
                        yield self._passage(number, row, str(count))
                        count += 1
        except LineFault as fault:
            raise CorpusError(f"{self.path}, {fault}" if fault.line else f"{self.path}: {fault}") from None

    def _passage(self, number: int, row: Any, default_id: str) -> Passage:
        try:
            return read_passage(row, default_id)
        except ValueError as error:
            raise CorpusError(f"{self.path}, line {number}: {error}") from None

    def count_bytes(self, block: memoryview) -> None:
        """Note bytes that were read from the disk."""
        self._hash.update(block)
        self._read += len(block)


class _Counted(io.RawIOBase):
    """A file whose bytes are counted as they are read."""

    def __init__(self, corpus: CorpusFile, file: io.FileIO) -> None:
        self._corpus = corpus
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        length = self._file.readinto(buffer) or 0
        self._corpus.count_bytes(memoryview(buffer)[:length])
        return length


def read_passage(row: Any, default_id: str) -> Passage:
    """A line's passage. Raises ValueError naming the field."""
    if not isinstance(row, dict):
        raise ValueError(f'it holds {row!r:.40}, not an object with "contents", or "title" and "text"')
    identity = row.get("id", default_id)
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise ValueError(f'"id" is {identity!r:.40}, not a text or a whole number')
    if "contents" in row:
        title, text = split_contents(_text(row, "contents"))
        return Passage(one_line(str(identity)), title, text)
    if "title" not in row or "text" not in row:
        raise ValueError(f'it has no "contents", nor "title" and "text"; its fields are {sorted(row)!r:.200}')
    return Passage(one_line(str(identity)), _bare(_text(row, "title")), _text(row, "text"))


def split_contents(contents: str) -> tuple[str, str]:
    """Title and body of what the peers' protocol has in one text, the title's quotation marks taken away."""
    title, _, text = contents.partition("\n")
    return _bare(title), text


def join_contents(title: str, text: str) -> str:
    """The one text of title and body that the peers' protocol has."""
    return f"{title}\n{text}"


def one_line(text: str) -> str:
    """The text with one blank in place of any run of blanks and line ends."""
    return " ".join(text.split())


def _bare(title: str) -> str:
    """The dumps put titles in quotation marks, which nobody who looks for a page would write."""
    plain = one_line(title)
    inner = plain[1:-1]
    if len(plain) > 2 and plain[0] == plain[-1] == '"' and '"' not in inner:
        return inner.strip()
    return plain


def _text(row: dict[str, Any], field: str) -> str:
    value = row[field]
    if not isinstance(value, str):
        raise ValueError(f'"{field}" is {value!r:.40}, not a text')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f'"{field}" holds half a surrogate pair, which is not text') from None
    return value
