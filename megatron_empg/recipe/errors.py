"""What is wrong with a recipe, in its own words: the key, what was given, what is allowed, and what to write."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.section import Section, choices, section_of


class RecipeError(EmpgError, ValueError):
    """A recipe that cannot be run; the message names the key, what was given and what is allowed."""

    exit_code = 2


MOVED_SECTIONS = {
    "algorithm.grpo": "algorithm",
    "algorithm.dapo": "algorithm",
    "algorithm.empg": "algorithm.modulation",
}
"""Sections of earlier releases, and where their keys lie now."""
MOVED_KEYS = {
    "algorithm.kl_coefficient": "algorithm.kl.coefficient",
    "algorithm.entropy_coefficient": "algorithm.regularizer, as {name: entropy, coefficient: ...}",
}
"""Keys of earlier releases, and what is written instead."""


@dataclass(frozen=True)
class Place:
    """Where in a recipe a fault lies."""

    key: str
    """Dotted, as in an override."""
    section: type[Section] | None
    """The section of which the last part of the key is said to be a key; None inside a value."""
    siblings: Mapping[str, type[Section]]
    """What the section was chosen from, itself included; empty where there was no choice."""


def explained(error: ValidationError, kind: type[Section]) -> RecipeError:
    """The error with a line for every fault of a recipe of this kind."""
    lines = "\n".join(f"  - {_line(fault, kind)}" for fault in error.errors())
    return RecipeError("this recipe cannot be run:\n" + lines)


def place_of(location: Iterable[str | int], kind: type[Section]) -> Place:
    """Translates pydantic's location, which also names the chosen section where there is a choice."""
    rest = [str(part) for part in location]
    path: list[str] = []
    section: type[Section] | None = kind
    siblings: Mapping[str, type[Section]] = {}
    while rest:
        path.append(rest.pop(0))
        field = section.model_fields.get(path[-1]) if section is not None else None
        annotation = field.annotation if field is not None else None
        if not rest:
            break
        siblings = choices(annotation)
        if siblings:
            section = siblings.get(rest.pop(0))
            if not rest:
                break
        elif isinstance(annotation, type) and issubclass(annotation, Section):
            section = annotation
        else:
            section = None
    return Place(".".join(path), section, siblings)


def closest(given: object, known: Iterable[str]) -> str:
    """``did you mean 'empg'? ``, or nothing where no known word is like the given one."""
    close = difflib.get_close_matches(str(given).lower(), list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def _line(fault: Any, kind: type[Section]) -> str:
    place = place_of(fault["loc"], kind)
    key = place.key or "recipe"
    match fault["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key; {_unknown_key(place, fault['input'])}"
        case "missing":
            return f"{key}: missing; give it a value"
        case "union_tag_invalid":
            return _unknown_name(place, fault, kind)
        case "model_attributes_type" | "union_tag_not_found":
            return _no_section(place, fault["input"], kind)
        case "model_type":
            return _no_keys(place, fault["input"], kind)
        case "value_error":
            message = str(fault["msg"]).removeprefix("Value error, ")
            return message if not place.key or message.startswith(place.key) else f"{key}: {message}"
    return f"{key}: {fault['msg']}; got {shown(fault['input'])}"


def _unknown_key(place: Place, given: Any) -> str:
    if place.key in MOVED_KEYS:
        return f"it is {MOVED_KEYS[place.key]} now"
    if place.key in MOVED_SECTIONS:
        return _moved(place.key, given)
    known = list(place.section.model_fields) if place.section is not None else []
    name = place.key.rpartition(".")[2]
    chosen = next((choice for choice, section in place.siblings.items() if section is place.section), "")
    owners = [choice for choice, section in place.siblings.items() if name in section.model_fields]
    hint = f"it is a key of {', '.join(owners)}; " if owners else closest(name, known)
    if not owners and (below := list(_below(place, name))):
        hint = f"there is {' and '.join(below)}; "
    of = f" with name {chosen}" if chosen else ""
    return f"{hint}allowed here{of}: {', '.join(known)}"


def _below(place: Place, name: str) -> Iterator[str]:
    """Dotted, the keys of this name in the sections right below the place's."""
    for key, field in (place.section.model_fields if place.section is not None else {}).items():
        sections = [*choices(field.annotation).values(), section_of(field.annotation, {})]
        if any(section is not None and name in section.model_fields for section in sections):
            yield f"{place.key.removesuffix(name)}{key}.{name}"


def _moved(section: str, given: Any) -> str:
    now = MOVED_SECTIONS[section]
    if not isinstance(given, Mapping) or not given:
        return f"its keys lie in {now} now"
    return ", ".join(f"{section}.{key} is {now}.{key} now" for key in given)


def _unknown_name(place: Place, fault: Any, kind: type[Section]) -> str:
    given, allowed = fault["ctx"]["tag"], fault["ctx"]["expected_tags"].replace("'", "").split(", ")
    field = (place.section or kind).model_fields.get(place.key.rpartition(".")[2])
    chosen = next(iter(choices(field.annotation).values()), None) if field is not None else None
    parts = chosen.model_fields if chosen is not None else {}
    owner = next((part for part in parts if given in choices(parts[part].annotation)), None)
    hint = f"it is one of {place.key}.{owner}; " if owner else closest(given, allowed)
    return f"{place.key}.name: {shown(given)} is unknown; {hint}allowed: {', '.join(allowed)}"


def _no_section(place: Place, given: Any, kind: type[Section]) -> str:
    section = place.section or kind
    field = section.model_fields.get(place.key.rpartition(".")[2])
    names = choices(field.annotation) if field is not None else {}
    return f"{place.key}: {shown(given)} is neither a name nor keys; names: {', '.join(names)}"


def _no_keys(place: Place, given: Any, kind: type[Section]) -> str:
    field = (place.section or kind).model_fields.get(place.key.rpartition(".")[2])
    section = section_of(field.annotation, given) if field is not None else None
    if section is None:
        return f"{place.key or 'recipe'}: {shown(given)} is no group of keys"
    keys = list(section.model_fields)
    return f"{place.key}: {shown(given)} is no group of keys; give {place.key}.{keys[0]}; keys: {', '.join(keys)}"


def shown(given: Any) -> str:
    """The value as Python writes it, cut where it is long."""
    text = repr(given)
    return text if len(text) <= 200 else text[:200] + "…"
