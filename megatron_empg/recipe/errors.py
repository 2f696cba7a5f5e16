"""What is wrong with a recipe, in its own words: the key, what was given, what is allowed, and what to write."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from megatron_empg.common.errors import EmpgError, without_prefix
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
class KeyPlace:
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


def place_of(location: Iterable[str | int], kind: type[Section]) -> KeyPlace:
    """Translates pydantic's location, which also names the chosen section where there is a choice."""
    rest = [str(part) for part in location]
    path: list[str] = []
    section: type[Section] | None = kind
    siblings: Mapping[str, type[Section]] = {}
    while rest:
        path.append(rest.pop(0))
        field = None
        if section is not None:
            field = section.model_fields.get(path[-1])
        annotation = None
        if field is not None:
            annotation = field.annotation
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
    return KeyPlace(".".join(path), section, siblings)


def closest(given: object, known: Iterable[str]) -> str:
    """``did you mean 'empg'? ``, or nothing where no known word is like the given one."""
    close = difflib.get_close_matches(str(given).lower(), list(known), n=1)
    if not close:
        return ""
    return f"did you mean {close[0]!r}? "


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
            message = without_prefix(str(fault["msg"]))
            if not place.key or message.startswith(place.key):
                return message  # it names the key itself
            return f"{key}: {message}"
    return f"{key}: {fault['msg']}; got {shown(fault['input'])}"


def _unknown_key(place: KeyPlace, given: Any) -> str:
    if place.key in MOVED_KEYS:
        return f"it is {MOVED_KEYS[place.key]} now"
    if place.key in MOVED_SECTIONS:
        return _moved(place.key, given)
    known = list(_fields(place.section))
    name = place.key.rpartition(".")[2]
    of = ""
    for choice, section in place.siblings.items():
        if section is place.section:
            of = f" with name {choice}"
    return f"{_hint(place, name, known)}allowed here{of}: {', '.join(known)}"


def _hint(place: KeyPlace, name: str, known: Iterable[str]) -> str:
    """Where a key of this name is; else which of the known ones is like it, if any."""
    owners = [choice for choice, section in place.siblings.items() if name in section.model_fields]
    if owners:
        return f"it is a key of {', '.join(owners)}; "
    below = list(_below(place, name))
    if below:
        return f"there is {' and '.join(below)}; "
    return closest(name, known)


def _fields(section: type[Section] | None) -> Mapping[str, FieldInfo]:
    """The section's keys; none without a section."""
    if section is None:
        return {}
    return section.model_fields


def _below(place: KeyPlace, name: str) -> Iterator[str]:
    """Dotted, the keys of this name in the sections right below the place's."""
    for key, field in _fields(place.section).items():
        for section in (*choices(field.annotation).values(), section_of(field.annotation, {})):
            if name in _fields(section):
                yield f"{place.key.removesuffix(name)}{key}.{name}"
                break


def _moved(section: str, given: Any) -> str:
    now = MOVED_SECTIONS[section]
    if not isinstance(given, Mapping) or not given:
        return f"its keys lie in {now} now"
    return ", ".join(f"{section}.{key} is {now}.{key} now" for key in given)


def _unknown_name(place: KeyPlace, fault: Any, kind: type[Section]) -> str:
    given, allowed = fault["ctx"]["tag"], fault["ctx"]["expected_tags"].replace("'", "").split(", ")
    hint = closest(given, allowed)
    first_choice = next(iter(_choices_at(place, kind).values()), None)
    for part, field in _fields(first_choice).items():
        if given in choices(field.annotation):
            hint = f"it is one of {place.key}.{part}; "
            break
    return f"{place.key}.name: {shown(given)} is unknown; {hint}allowed: {', '.join(allowed)}"


def _field_at(place: KeyPlace, kind: type[Section]) -> FieldInfo | None:
    """The place's own key in its section; None where the section has none of this name."""
    section = place.section or kind
    return section.model_fields.get(place.key.rpartition(".")[2])


def _choices_at(place: KeyPlace, kind: type[Section]) -> Mapping[str, type[Section]]:
    """What the place's key may be by name; nothing where there is no choice."""
    field = _field_at(place, kind)
    if field is None:
        return {}
    return choices(field.annotation)


def _no_section(place: KeyPlace, given: Any, kind: type[Section]) -> str:
    names = _choices_at(place, kind)
    return f"{place.key}: {shown(given)} is neither a name nor keys; names: {', '.join(names)}"


def _no_keys(place: KeyPlace, given: Any, kind: type[Section]) -> str:
    field = _field_at(place, kind)
    section = None
    if field is not None:
        section = section_of(field.annotation, given)
    if section is None:
        return f"{place.key or 'recipe'}: {shown(given)} is not a group of keys"
    keys = list(section.model_fields)
    return (
        f"{place.key}: {shown(given)} is not a group of keys; give {place.key}.{keys[0]}; keys: {', '.join(keys)}"
    )


def shown(given: Any) -> str:
    """The value as Python writes it, cut where it is long."""
    text = repr(given)
    if len(text) <= 200:
        return text
    return text[:200] + "…"
