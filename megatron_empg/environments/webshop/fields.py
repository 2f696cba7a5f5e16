"""The fields of a record, checked: each fault names the file, the place, the field and what it must be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_empg.environments.webshop.errors import CatalogueError

_SHOWN = 60


@dataclass(frozen=True)
class Fields:
    """A record and where it stands. The readers raise CatalogueError."""

    values: dict[str, Any]
    path: Path | str
    place: str

    @classmethod
    def of(cls, value: Any, path: Path | str, place: str) -> Fields:
        """Raises CatalogueError for what is no object."""
        if not isinstance(value, dict):
            raise CatalogueError(path, place, f"an object should stand here; found {_shown(value)}")
        return cls(value, path, place)

    def fault(self, name: str, rule: str) -> CatalogueError:
        """What to raise where a field is not as it must be."""
        found = "nothing"
        if name in self.values:
            found = _shown(self.values[name])
        return CatalogueError(self.path, self.place, f'field "{name}" must be {rule}; found {found}')

    def text(self, name: str) -> str:
        """A text."""
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self.fault(name, "a text")
        return sound(value)

    def text_or_nothing(self, name: str) -> str:
        """A text; an empty one for null or where the field is missing."""
        if self.values.get(name) is None:
            return ""
        return self.text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, or a text for a list of one."""
        listed = self.values.get(name)
        if isinstance(listed, str):
            listed = [listed]
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise self.fault(name, "a list of texts")
        return tuple(sound(item) for item in listed)


def sound(text: str) -> str:
    """The text without halves of surrogate pairs, which no tokenizer reads."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shown(value: Any) -> str:
    names = {type(None): "null", bool: "a truth value", list: "a list", dict: "an object"}
    if type(value) in names:
        return names[type(value)]
    if isinstance(value, str):
        shown = value[:_SHOWN]
    else:
        shown = repr(value)[:_SHOWN]
    return ascii(shown)
