"""Values of configs that pydantic's own types do not describe: paths, and free settings; and how its faults are
said."""

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from megatron_empg.common.errors import without_prefix


def faults_of(error: ValidationError) -> list[str]:
    """Each fault as ``key: what is wrong``."""
    found = []
    for fault in error.errors(include_url=False):
        key = ".".join(map(str, fault["loc"]))
        message = without_prefix(fault["msg"])
        if key:
            message = f"{key}: {message}"
        found.append(message)
    return found


def not_empty(given: Any) -> Any:
    """A path's text, which names something. Raises ValueError."""
    if isinstance(given, str) and not given.strip():
        raise ValueError("is empty; give a path")
    if not isinstance(given, str | Path):
        raise ValueError(f"is {given!r:.40}; give a path, in quotes where YAML reads something else")
    if isinstance(given, str) and "\0" in given:
        raise ValueError("holds a zero byte, which no path can")
    return given


def expanded(path: Path) -> Path:
    """The path with a leading ``~`` or ``~user`` replaced by the home folder. Raises ValueError."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"is {str(path)!r}: {error}") from None


# YAML knows no paths.
PathText = Annotated[Path, Field(strict=False), BeforeValidator(not_empty), AfterValidator(expanded)]


def plain_settings(settings: dict[str, Any], key: str = "environment.settings") -> dict[str, Any]:
    """The settings with ``~/`` expanded at the start of texts.

    Raises ValueError naming a number that is not finite, or a value that is none of JSON's kinds.
    """
    return {name: _plain(value, f"{key}.{name}") for name, value in settings.items()}


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        if odd := [name for name in value if not isinstance(name, str)]:
            raise ValueError(f"{key}: the key {odd[0]!r} is not text; quote it")
        return plain_settings(value, key)
    if value is not None and not isinstance(value, str | bool | int | float | list):
        # It would be another value once the recipe is written down and read again.
        raise ValueError(f"{key}: {value!r} is a {type(value).__name__} to YAML; quote it if it is meant as text")
    if isinstance(value, list):
        return [_plain(item, f"{key}.{index}") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key}: Input should be a finite number; got {value}")
    if isinstance(value, str) and value.startswith("~/"):
        return str(Path(value).expanduser())
    return value
