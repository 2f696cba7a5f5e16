"""Overrides: ``section.key=value`` as the command line gives them, put into a recipe's nested keys.

Their order does not matter, but for two of the same key, of which the last holds: an override of a whole section
comes before those of keys in it, and that of its ``name`` before those of its other keys. Another ``name`` is
another choice, with its own defaults: keys that not all choices share are dropped. So ``algorithm.name=gigpo``
takes away what a recipe says of DAPO's clip, and leaves its modulation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from megatron_empg.common.section import Section, choices, section_of, shared_keys
from megatron_empg.recipe.errors import RecipeError, shown
from megatron_empg.recipe.yaml_text import read_yaml


@dataclass(frozen=True)
class Override:
    """One of them, read."""

    text: str
    path: list[str]
    value: Any

    @property
    def order(self) -> tuple[int, bool]:
        """The sort key of overrides: sections before their keys, a name before what it decides on."""
        return len(self.path), self.path[-1] != "name"


def apply_overrides(raw: dict[str, Any], overrides: Iterable[str], kind: type[Section]) -> None:
    """Change the nested keys of a recipe of this kind, in place. Raises RecipeError."""
    read = [_read(text) for text in overrides]
    for override in sorted(read, key=lambda override: override.order):
        _apply(raw, override, kind)


def _read(text: str) -> Override:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {text!r} is not of the form section.key=value")
    try:
        return Override(text, key.split("."), read_yaml(value))
    except ValueError as error:
        raise RecipeError(f"override {text!r}: the value is not YAML: {error}") from error


def _apply(raw: dict[str, Any], override: Override, kind: type[Section]) -> None:
    *above, last = override.path
    node = raw
    section: type[Section] | None = kind
    siblings: dict[str, type[Section]] = {}
    for name in above:
        field = None
        if section is not None:
            field = section.model_fields.get(name)
        if field is not None:
            siblings = choices(field.annotation)
        else:
            siblings = {}
        node = _below(node, name, override, named=bool(siblings))
        if field is not None and siblings:
            node.setdefault("name", field.default.name)
        section = None
        if field is not None:
            section = section_of(field.annotation, node)
        if section is None and siblings:  # an unknown name, refused later; what all choices share is known
            section = next(iter(siblings.values()))
    if last == "name" and siblings and section is not siblings.get(str(override.value)):
        _keep_shared(node, siblings)
    node[last] = override.value


def _below(node: dict[str, Any], name: str, override: Override, *, named: bool) -> dict[str, Any]:
    """The keys of a section of the node, made where there are none; of a `named` one a bare name becomes keys."""
    below = node.setdefault(name, {})
    if named and isinstance(below, str):
        below = node[name] = {"name": below}
    if not isinstance(below, dict):
        raise RecipeError(
            f"override {override.text!r}: {name} is {shown(below)}, a value, not a section: correct the "
            "override, or give the recipe keys there"
        )
    return below


def _keep_shared(node: dict[str, Any], siblings: dict[str, type[Section]]) -> None:
    shared = shared_keys(siblings.values())
    for key in [key for key in node if key not in shared]:
        del node[key]
