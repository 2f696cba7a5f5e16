"""The items of a long JSON array, one at a time: HotpotQA's training file is an array of half a gigabyte.

The standard library decodes each item from a window of text. A stream parser such as ijson would do the same, but
its memory grows with the square of a file's nesting, it repairs broken Unicode without a word, and knows no lines.
"""

import json
from collections.abc import Iterator
from typing import Any, TextIO

from megatron_empg.common.errors import EmpgError

MAX_ITEM = 64 * 2**20
"""Characters that an item may have."""
_CHUNK = 2**20
_BLANK = " \t\r\n"
_BEHIND = 2
"""Letters behind a number that may still belong to it, when the window ends there: "1.", "1e", "1e-"."""


class JsonFault(EmpgError, ValueError):
    """The text is not the JSON that was expected; says what is wrong."""


class JsonStream:
    """Reads on in a text as far as asked. `line` is the line that was reached. Raises JsonFault."""

    def __init__(self, text: TextIO) -> None:
        self.line = 1
        self._text = text
        self._window = ""
        self._at = 0
        self._decoder = json.JSONDecoder()

    def items(self) -> Iterator[Any]:
        """The items of the array that begins here, to its end."""
        self._expect("[")
        if self._next() == "]":
            self._expect("]")
            return
        while True:
            yield self._value()
            if self._next() == "]":
                self._expect("]")
                return
            self._expect(",")

    def items_under(self, key: str) -> Iterator[Any]:
        """The items of the array that is the value of `key` in the object that begins here."""
        self._expect("{")
        found = False
        while True:
            name = self._value()
            self._expect(":")
            if name == key:
                found = True
                yield from self.items()
            else:
                self._value()
            if self._next() == "}":
                self._expect("}")
                break
            self._expect(",")
        if not found:
            raise JsonFault(f'there is no "{key}"')

    def end(self) -> None:
        """Check that nothing follows."""
        letter = self._next()
        if letter:
            raise JsonFault(f"nothing should follow here; found {letter!a}")

    def _expect(self, letter: str) -> None:
        found = self._next()
        if found != letter:
            shown = "the end"
            if found:
                shown = ascii(found)
            raise JsonFault(f"{letter!a} should stand here; found {shown}")
        self._at += 1

    def _next(self) -> str:
        """The next letter that is not blank, which is not taken; empty at the end."""
        while True:
            while self._at < len(self._window):
                letter = self._window[self._at]
                if letter not in _BLANK:
                    return letter
                self._at += 1
                if letter == "\n":
                    self.line += 1
            if not self._more(_CHUNK):
                return ""

    def _value(self) -> Any:
        """The value that begins here. The window grows until it holds the value and what may belong to it."""
        if not self._next():
            raise JsonFault("a value should stand here; found the end")
        wanted = _CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._window, self._at)
                if len(self._window) - end > _BEHIND or not self._more(wanted):
                    self.line += self._window.count("\n", self._at, end)
                    self._at = end
                    return value
                continue
            except json.JSONDecodeError as error:
                fault = error.msg
            except (ValueError, RecursionError) as error:
                raise JsonFault(str(error)) from None
            if len(self._window) - self._at > MAX_ITEM:
                raise JsonFault(f"an item has over {MAX_ITEM} characters, or is broken ({fault})")
            if not self._more(wanted):
                raise JsonFault(fault)
            wanted *= 2

    def _more(self, size: int) -> bool:
        """Read on, letting go of what was taken. False at the end."""
        read = self._text.read(size)
        if not read:
            return False
        self._window = self._window[self._at :] + read
        self._at = 0
        return True
