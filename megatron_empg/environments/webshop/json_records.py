"""WebShop's files, one record at a time: an array of products, or an object whose keys are asins."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_empg.environments.deep_search.data.json_stream import JsonFault, JsonStream
from megatron_empg.environments.deep_search.json_lines import LineFault, unpacked
from megatron_empg.environments.webshop.errors import CatalogueError
from megatron_empg.environments.webshop.fields import Fields


class _Stream(JsonStream):
    """Reads objects too whose keys are many."""

    def pairs(self) -> Iterator[tuple[str, Any]]:
        """The keys of the object that begins here with their values, to its end."""
        self._expect("{")
        if self._next() == "}":
            self._expect("}")
            return
        while True:
            key = self._value()
            if not isinstance(key, str):
                raise JsonFault("a key should stand here, in quotes")
            self._expect(":")
            yield key, self._value()
            if self._next() == "}":
                self._expect("}")
                return
            self._expect(",")


def product_records(path: Path) -> Iterator[Fields]:
    """The records of an array. Raises CatalogueError; OSError where the file cannot be opened."""
    number = 0
    with _opened(path, lambda: f"after record {number}") as stream:
        for value in stream.items():
            number += 1
            yield Fields.of(value, path, f"record {number} (to line {stream.line})")
        stream.end()


def records_by_asin(path: Path) -> Iterator[tuple[str, Any, str]]:
    """(asin, value, place) of an object. Raises CatalogueError; OSError where the file cannot be opened."""
    last = "the beginning"
    with _opened(path, lambda: f"after {last}") as stream:
        for asin, value in stream.pairs():
            last = asin
            yield asin, value, f"{asin[:40]!a} (to line {stream.line})"
        stream.end()


@contextmanager
def _opened(path: Path, reached: Callable[[], str]) -> Iterator[_Stream]:
    """The stream of a file, compressed by gzip or not. What goes wrong inside says how far the reading came."""
    with path.open("rb") as file:
        stream: _Stream | None = None
        try:
            with unpacked(file) as plain:
                stream = _Stream(io.TextIOWrapper(plain, encoding="utf-8", newline=""))
                yield stream
        except LineFault as fault:
            raise CatalogueError(path, reached(), fault.fault) from None
        except JsonFault as fault:
            line = 1
            if stream is not None:
                line = stream.line
            raise CatalogueError(path, f"line {line}, {reached()}", f"it is not JSON ({fault})") from None
        except UnicodeDecodeError:
            raise CatalogueError(path, reached(), "it is not UTF-8; save it as UTF-8") from None
