"""The settings of an environment as a reader needs them: key, type, default, and what it means."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from megatron_empg.environments.settings import role_of

ROLES = {"data": "data file", "data folder": "data folder", "service": "address of a service"}
PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", Any: "anything"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass(frozen=True)
class SettingField:
    """`key` is dotted; ``*`` stands for a place in a list. `default` is JSON; None where it must be given.

    `group`: what the text of the class says of a setting inside of another, and of those beside it.
    """

    key: str
    type: str
    default: str | None
    description: str
    group: str = ""


def fields_of(kind: type[BaseModel]) -> list[SettingField]:
    """All settings of a kind, those inside of others after them; where they are the same again, only once."""
    return list(_fields(kind, "", "", set()))


def _fields(kind: type[BaseModel], before: str, group: str, known: set[type]) -> Iterator[SettingField]:
    for name, field in kind.model_fields.items():
        key = before + name
        yield SettingField(key, _type_of(field), _default_of(field), _plain(field.description), group)
        for inner, where in _models(field.annotation, key):
            if inner not in known:
                known.add(inner)
                yield from _fields(inner, f"{where}.", _plain(inner.__dict__.get("__doc__")), known)


def _plain(text: str | None) -> str:
    return inspect.cleandoc(text or "").strip()


def _type_of(field: FieldInfo) -> str:
    role = role_of(field)
    # Data and services are paths and texts of their own kind.
    if role:
        plain = PLAIN | dict.fromkeys((Path, str), ROLES[role])
    else:
        plain = PLAIN
    words = _words(field.annotation, plain)
    bounds = [f"{word} {value:g}" for word, value in _bounds(field.metadata)]
    return ", ".join([words, *bounds])


def _bounds(metadata: list[Any]) -> Iterator[tuple[str, float]]:
    for mark in metadata:
        for name, word in BOUNDS.items():
            value = getattr(mark, name, None)
            if value is not None:
                yield word, value


def _words(annotation: Any, plain: Mapping[Any, str]) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(parts[0], plain)
    if origin is Literal:
        return " or ".join(json.dumps(value, ensure_ascii=False) for value in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part, plain) for part in parts)
    if origin in (list, tuple, set, frozenset):
        inner = [_words(part, plain) for part in parts if part is not ...]
        return "list of " + ", ".join(inner)
    if origin is dict or annotation is dict:
        return "keys with values"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "keys (see below)"
    return plain.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default_of(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    default = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, BaseModel):
        default = default.model_dump(mode="json")
    return json.dumps(default, ensure_ascii=False, default=str)


def _models(annotation: Any, key: str) -> Iterator[tuple[type[BaseModel], str]]:
    """The models that a value may be or hold, and the key of each."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, key
    listed = get_origin(annotation) in (list, tuple, dict)
    for part in get_args(annotation):
        yield from _models(part, f"{key}.*" if listed else key)
