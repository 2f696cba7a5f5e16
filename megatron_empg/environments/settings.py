"""Settings of an environment: a pydantic model whose fields say which of them are data and which are addresses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from megatron_empg.common.errors import without_prefix
from megatron_empg.common.values import expanded, not_empty


@dataclass(frozen=True)
class _Marked:
    """What a setting means to whoever starts or continues a run."""

    role: str


_USER = re.compile(r"(https?://)[^/?#'\\]*@")
"""A web address as far as its user and password."""


def _web_address(given: str) -> str:
    if not given.startswith(("http://", "https://")):
        raise ValueError("starts with http:// or https://")
    if _USER.match(given):
        raise ValueError("names a user or password, which would stand in logs; leave out what ends in @")
    return given


_PATH = (Field(strict=False), BeforeValidator(not_empty), AfterValidator(expanded))
PlainPath = Annotated[Path, *_PATH]
"""A path that says nothing of what a run is trained on."""
DataFile = Annotated[Path, *_PATH, _Marked("data")]
"""A file of data: a run is that of the file's content, wherever it lies."""
MANIFEST = "manifest.json"
DataFolder = Annotated[Path, *_PATH, _Marked("data folder")]
"""A folder of data, known by its manifest.json."""
ServiceAddress = Annotated[str, AfterValidator(_web_address), _Marked("service")]
"""Where a service is reached, which may be elsewhere at each start of a run."""


class EnvironmentSettings(BaseModel):
    """The base of every environment's settings. Unknown keys are errors; numbers are finite.

    The text below a field says what it means: `empg environments NAME` shows it.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )

    @classmethod
    def json_defaults(cls) -> dict[str, Any]:
        """{key: default} as JSON has it, of the keys that have one and are not at a place of their own."""
        found: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            if field.is_required() or role_of(field):
                continue
            default = field.get_default(call_default_factory=True)
            found[name] = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
        plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
        return plain


def read_settings(
    kind: type[EnvironmentSettings], given: Mapping[str, Any], environment: str
) -> EnvironmentSettings:
    """The settings, checked; one that is null is not given.

    Raises ValueError naming each key, what is wrong, and what is allowed.
    """
    said = {key: value for key, value in given.items() if value is not None}
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        faults = [_explained(fault, kind) for fault in error.errors(include_url=False)]
        raise ValueError(f"{environment} " + f"; {environment} ".join(faults)) from None


def _explained(fault: Any, kind: type[EnvironmentSettings]) -> str:
    key = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        allowed = sorted(_model_at(kind, fault["loc"][:-1]).model_fields)
        return f"{key}: there is no such setting; allowed: {', '.join(allowed)}"
    if fault["type"] == "missing":
        return f"{key}: must be given"
    given = _without_user(repr(fault["input"]))[:200]
    if fault["type"] == "literal_error":
        allowed = fault["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
        return f"{key} {given} is unknown; allowed: {allowed}"
    message = without_prefix(fault["msg"])
    if not key:
        return str(message)
    return f"{key} is {given}: {message}"


def _without_user(text: str) -> str:
    return _USER.sub(lambda found: f"{found[1]}...@", text)


def _model_at(kind: type[BaseModel], place: Iterable[str | int]) -> type[BaseModel]:
    """The innermost model on the way to a place in settings, as pydantic's errors name it."""
    found = kind
    key_follows = False  # of a list or a mapping, which may be called as a field is
    for part in place:
        field = found.model_fields.get(str(part))
        if key_follows or field is None:
            key_follows = False
            continue
        inner = list(_models_within(field.annotation))
        if len(inner) == 1:
            found, key_follows = inner[0]
    return found


def data_paths(settings: BaseModel) -> dict[str, Path]:
    """{dotted key: file} of the data that settings name, defaults included; of a folder its manifest."""
    found: dict[str, Path] = {}
    for key, value, role in _with_roles(settings, ""):
        if role == "data":
            found[key] = value
        elif role == "data folder":
            found[key] = value / MANIFEST
    return found


def service_addresses(settings: BaseModel) -> dict[str, str]:
    """{dotted key: URL} of the services that settings name."""
    return {
        key: value for key, value, role in _with_roles(settings, "") if role == "service" and value is not None
    }


def keys_of_places(kind: type[BaseModel]) -> set[str]:
    """The dotted keys that name data or a service, not what is done with it; ``*`` stands for a place in a list.

    For instance ``{"search_url", "questions.train.*.path"}``.
    """
    found: set[str] = set()
    for name, field in kind.model_fields.items():
        if role_of(field):
            found |= {name, f"{name}.*"} if _holds_many(field.annotation) else {name}
        for inner, listed in _models_within(field.annotation):
            if listed:
                before = f"{name}.*."
            else:
                before = f"{name}."
            found |= {before + key for key in keys_of_places(inner)}
    return found


def names_a_place(key: str, places: Iterable[str]) -> bool:
    """Whether a dotted key is one of `places`, which `keys_of_places` found; a ``*`` stands for any place."""
    return any(fnmatchcase(key, place) for place in places)


def _models_within(annotation: Any, listed: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """The models that a field of this type may hold, and whether in a list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, listed
    within = listed or get_origin(annotation) in (list, tuple, dict)
    for part in get_args(annotation):
        yield from _models_within(part, within)


def _with_roles(settings: BaseModel, before: str) -> Iterator[tuple[str, Any, str]]:
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        role = role_of(field)
        if role:
            yield from ((key, place, role) for key, place in _places(value, before + name))
        yield from _nested(value, f"{before}{name}.")


def _places(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The value's own places, of which a list or a mapping has as many as it has values."""
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _places(item, f"{key}.{index}")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _places(item, f"{key}.{name}")
    elif value is not None:
        yield key, value


def _holds_many(annotation: Any) -> bool:
    """Whether a value of this type is, or may be, a list or a mapping."""
    return get_origin(annotation) in (list, tuple, dict) or any(map(_holds_many, get_args(annotation)))


def _nested(value: Any, before: str) -> Iterator[tuple[str, Any, str]]:
    """What models inside of a value have, which may be lists or mappings of them."""
    if isinstance(value, BaseModel):
        yield from _with_roles(value, before)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _nested(item, f"{before}{index}.")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nested(item, f"{before}{key}.")


def role_of(field: FieldInfo) -> str:
    """What a field is to a run, "data", "data folder" or "service"; empty when it is none of them.

    It may be marked itself or be one of a union's, a list's or a mapping's kinds.
    """
    return next((mark.role for mark in _marks(field.annotation, field.metadata) if isinstance(mark, _Marked)), "")


def _marks(annotation: Any, metadata: Iterable[Any] = ()) -> Iterator[Any]:
    """What a type and those that it is made of are annotated with."""
    yield from metadata
    yield from getattr(annotation, "__metadata__", ())
    for part in get_args(annotation):
        yield from _marks(part)
