"""What groups of recipe keys are made of: the base of sections, choices among them, and ranges of numbers."""

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# Seeds of draws are a million times the run's and more, and must fit 64 bits; no count needs more either.
LARGEST = 2**31 - 1
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
NonNegative = Annotated[int, Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Coefficient = Annotated[float, Field(ge=-100, le=100)]
NonNegativeCoefficient = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A group of keys. Unknown keys are errors, values are never silently converted between kinds.

    Numbers are finite.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Mark(Enum):
    """What other parts do with a key, said where the key is.

    Example: ``tensor_parallel: Annotated[Positive, Mark.PLANNED] = 1``.
    """

    PLANNED = "`empg plan` chooses it"
    MAY_CHANGE = "a run may go on with another value"
    DECIDES_EPISODES = "an evaluation's episodes go another way with another value"


def marked(section: type[Section], mark: Mark) -> tuple[str, ...]:
    """Names of the section's own keys that have the mark, in their order."""
    return tuple(name for name, field in section.model_fields.items() if mark in field.metadata)


def marked_keys(kind: type[Section], mark: Mark, above: str = "") -> set[str]:
    """Dotted keys that have the mark, in all sections below; `section.*` where a whole section has it."""
    found: set[str] = set()
    for name, field in kind.model_fields.items():
        key = f"{above}{name}"
        inner = section_of(field.annotation, {})
        if inner is not None:
            sections = [inner]
        else:
            sections = list(choices(field.annotation).values())
        if mark in field.metadata:
            found.add(f"{key}.*" if sections else key)
            continue
        for section in sections:
            found |= marked_keys(section, mark, f"{key}.")
    return found


def named(default: str) -> BeforeValidator:
    """A validator of a key that holds one of several sections, told apart by their `name`.

    A bare name is that section with its defaults; keys without a name are those of the section ``default``.
    """

    def with_name(given: Any) -> Any:
        if isinstance(given, str):
            return {"name": given}
        if isinstance(given, dict):
            return {"name": default, **given}
        return given

    return BeforeValidator(with_name)


def choices(annotation: Any) -> dict[str, type[Section]]:
    """{name: section} of the sections that a key of this type may hold; empty for a plain section and a value."""
    found: dict[str, type[Section]] = {}
    for part in get_args(annotation):
        if isinstance(part, type) and issubclass(part, Section):
            names = get_args(part.model_fields["name"].annotation)
            found |= dict.fromkeys(names, part)
    return found


def section_of(annotation: Any, values: Any) -> type[Section] | None:
    """The section that a key of this type holds with these values; None for a value, or for an unknown name."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    name = None
    if isinstance(values, Mapping):
        name = values.get("name")
    return choices(annotation).get(str(name))


def shared_keys(sections: Iterable[type[Section]]) -> set[str]:
    """Keys of the nearest class that all of the sections derive from."""
    first, *others = sections
    for base in first.__mro__:
        if issubclass(base, Section) and all(issubclass(other, base) for other in others):
            return set(base.model_fields)
    return set()
