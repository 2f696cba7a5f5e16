"""Fields of a dataclass that settings change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar

from megatron_empg.common.errors import without_prefix

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def changed(default: T, given: Mapping[str, Any], setting: str) -> T:
    """`default` with the fields that are `given`.

    Raises ValueError naming a field that is none, or a value that is of another type or out of bounds.
    """
    from pydantic import TypeAdapter, ValidationError

    known = [field.name for field in fields(default)]
    for key in given:
        if key not in known:
            raise ValueError(f"{setting}.{key}: there is no such setting; allowed: {', '.join(known)}")
    try:
        made: T = TypeAdapter(type(default)).validate_python({**asdict(default), **given})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join([setting, *map(str, fault["loc"])])
        told = without_prefix(fault["msg"])
        raise ValueError(f"{key}: {told}; given: {dict(given)!r:.200}") from None
    return made
