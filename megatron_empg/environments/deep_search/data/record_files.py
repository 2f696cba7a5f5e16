"""Records of a file: JSON lines, a JSON array, an object around one, or CSV; compressed by gzip or not.

Which of them it is follows from the name's ending (.csv) and the first letters, since the same data goes around in
several forms. One record at a time is held in memory.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron_empg.environments.deep_search.data.json_stream import JsonFault, JsonStream
from megatron_empg.environments.deep_search.data.published_question import QuestionDataError
from megatron_empg.environments.deep_search.json_lines import LineFault, json_lines, unpacked

MAX_TEXT = 20_000
"""Characters that a question or an answer may have."""
_AROUND = re.compile(rb'\s*\{\s*"(?:Data|Domain|VerifiedEval|Version)"\s*:')
"""How TriviaQA's own files begin, whose records are the items of "Data"."""
_HEAD = 256  # letters by which the form is told
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN = 60  # letters of a wrong value that a message shows


@dataclass(frozen=True)
class QuestionRecord:
    """One record and where it stands. The readers raise QuestionDataError, naming the field."""

    path: Path
    place: str
    number: int
    fields: dict[str, Any]

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def fault(self, field: str, expected: str) -> QuestionDataError:
        """The error to raise when `field` is not what is `expected`."""
        found = "nothing"
        if field in self.fields:
            found = _described(self.fields[field])
        return QuestionDataError(self.path, self.place, f'field "{field}" must be {expected}; found {found}')

    def text(self, *names: str) -> str:
        """The first of the fields that is there: a text with something in it."""
        name = self._present(names)
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.fault(name, "a text that is not blank")
        self._check(name, value)
        return value.strip()

    def texts(self, *names: str) -> list[str]:
        """The first of the fields that is there: a list of texts. Blank ones are left out."""
        name = self._present(names)
        value = self.fields.get(name)
        if not isinstance(value, list):
            raise self.fault(name, "a list of texts")
        found = []
        for item in value:
            if not isinstance(item, str):
                raise self.fault(name, "a list of texts and nothing else")
            self._check(name, item)
            if item.strip():
                found.append(item.strip())
        return found

    def child(self, name: str) -> QuestionRecord:
        """The record inside of a field."""
        value = self.fields.get(name)
        if not isinstance(value, dict):
            raise self.fault(name, "an object")
        return QuestionRecord(self.path, f"{self.place}, inside {name}", self.number, value)

    def _present(self, names: Sequence[str]) -> str:
        for name in names:
            if name in self.fields:
                return name
        return names[0]

    def _check(self, name: str, value: str) -> None:
        if len(value) > MAX_TEXT:
            raise self.fault(name, f"at most {MAX_TEXT} characters long; it has {len(value)}")
        if _SURROGATE.search(value):
            raise self.fault(name, "Unicode without lone surrogates")


def read_records(path: Path) -> Iterator[QuestionRecord]:
    """Every record of a file, in order. Raises QuestionDataError; OSError where the file cannot be opened."""
    try:
        with path.open("rb") as file, unpacked(file) as plain:
            head = _head(plain)
        with path.open("rb") as file, unpacked(file) as plain:
            yield from _records(path, head, plain)
    except LineFault as fault:
        place = ""
        if fault.line is not None:
            place = f"line {fault.line}"
        raise QuestionDataError(path, place, fault.fault) from None


def _head(plain: io.BufferedReader[Any]) -> bytes:
    """The first letters that are not blanks, of which there may be any number before them."""
    head = b""
    while len(head) < _HEAD:
        part = plain.read(1 << 16)
        if not part:
            break
        head = (head + part).lstrip()
    return head[:_HEAD]


def _records(path: Path, head: bytes, plain: io.BufferedReader[Any]) -> Iterator[QuestionRecord]:
    if not head:
        raise QuestionDataError(path, "", "there is nothing in it")
    if path.name.removesuffix(".gz").lower().endswith(".csv"):
        yield from _csv_rows(path, plain)
    elif head.startswith(b"["):
        yield from _items(path, plain, "")
    elif _AROUND.match(head):
        yield from _items(path, plain, "Data")
    else:
        for number, value in json_lines(plain):
            yield _record(path, f"line {number}", number, value)


def _items(path: Path, stream: BinaryIO, key: str) -> Iterator[QuestionRecord]:
    """The items of an array, which is the value of `key` in an object where a key is given."""
    parsed = JsonStream(io.TextIOWrapper(stream, encoding="utf-8", newline=""))
    number = 0
    try:
        for value in parsed.items_under(key) if key else parsed.items():
            number += 1
            yield _record(path, f"record {number} (to line {parsed.line})", number, value)
        parsed.end()
    except JsonFault as fault:
        place = f"line {parsed.line}, after record {number}"
        raise QuestionDataError(path, place, f"it is not JSON ({fault})") from None
    except UnicodeDecodeError:
        raise QuestionDataError(path, f"after record {number}", "it is not UTF-8; save it as UTF-8") from None


def _csv_rows(path: Path, stream: BinaryIO) -> Iterator[QuestionRecord]:
    """Rows under a header. A cell may go over lines; the place is the row's last line."""
    table = csv.reader(io.TextIOWrapper(stream, encoding="utf-8", newline=""), strict=True)
    number = 0
    try:
        header = next(row for row in table if any(cell.strip() for cell in row))
        for row in table:
            number += 1
            place = f"line {table.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) > len(header):
                fault = f"it has {len(row)} cells; the header has {len(header)}"
                raise QuestionDataError(path, place, fault)
            fields = {name: cell for name, cell in zip(header, row, strict=False) if name.strip()}
            yield _record(path, place, number, fields)
    except UnicodeDecodeError:
        raise QuestionDataError(
            path, f"after line {table.line_num}", "it is not UTF-8; save it as UTF-8"
        ) from None
    except (csv.Error, StopIteration) as error:
        raise QuestionDataError(path, f"line {table.line_num}", f"it is not CSV ({error})") from None


def _record(path: Path, place: str, number: int, value: Any) -> QuestionRecord:
    if not isinstance(value, dict):
        raise QuestionDataError(path, place, f"a question is an object; found {_described(value)}")
    return QuestionRecord(path, place, number, value)


def _described(value: Any) -> str:
    """A wrong value in few words that any terminal can print."""
    names = {type(None): "null", bool: "a truth value", str: "a text", list: "a list", dict: "an object"}
    name = names.get(type(value), "a number")
    if value is None:
        return name
    if isinstance(value, list | dict):
        return f"{name} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_SHOWN:
        return f"{name} of over {_SHOWN} digits"
    shown = ascii(value[:_SHOWN] if isinstance(value, str) else value)
    return f"{name} ({shown})"
