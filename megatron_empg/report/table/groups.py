"""Runs that differ in their seed alone, as one line of the table.

Whether two runs differ elsewhere is asked of the project's own comparison of recipes. A key that may be another on
a continuation is passed over where it changes what is told or where it is computed, not where it changes what is
learnt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from megatron_empg.environments.registry import place_settings
from megatron_empg.environments.settings import names_a_place
from megatron_empg.recipe.identity import BY_CONTENT, SETTINGS, differences, may_change
from megatron_empg.report.table.methods import Method
from megatron_empg.report.table.results import Result

SEED = "run.seed"
DECIDING = ("run.steps", "actor.optimizer.*", "evaluation.questions", "evaluation.temperature")
"""Keys that may change on a continuation and make another result all the same."""
METHOD_KEYS = frozenset({"algorithm.modulation.name", "algorithm.regularizer.name"})
"""In which a run may differ from the one that it is compared with as the plain algorithm."""


@dataclass(frozen=True)
class Difference:
    """A key in which two runs differ."""

    key: str
    first: Any
    second: Any


@dataclass
class RunGroup:
    """Results of one line, each with a seed of its own; the first stands for all."""

    number: int
    results: list[Result]
    differs: tuple[int, list[Difference]] | None = None
    """From which earlier line of the same environment, model and method, and in what."""
    left_out: list[Result] = field(default_factory=list)
    """Those whose seed another one has already."""

    @property
    def first(self) -> Result:
        return self.results[0]

    @property
    def environment(self) -> str:
        return self.first.environment.name

    @property
    def method(self) -> Method:
        return self.first.method

    @property
    def seeds(self) -> list[int]:
        return [result.seed for result in self.results]

    def notes(self) -> list[str]:
        """What is odd about its runs, each once."""
        found: list[str] = []
        for result in self.results:
            found += result.notes
        for result in self.left_out:
            found.append(f"{result.name} is left out: seed {result.seed} is there already")
        return list(dict.fromkeys(found))


def grouped(results: Iterable[Result]) -> list[RunGroup]:
    """Lines, numbered from 1, in the order of environments and methods."""
    found: list[list[Result]] = []
    for result in results:
        _put(found, result)
    found.sort(key=_rank)
    groups: list[RunGroup] = []
    for number, members in enumerate(found, 1):
        group = _one_of_each_seed(number, members)
        group.differs = _differs(group, groups)
        groups.append(group)
    return groups


def _put(groups: list[list[Result]], result: Result) -> None:
    """To those that it is alike, or to none."""
    for members in groups:
        if not differences_of(members[0], result):
            members.append(result)
            return
    groups.append([result])


def differences_of(first: Result, second: Result) -> list[Difference]:
    """Keys besides the seed in which two results differ and that can change a result."""
    found = []
    for key, old, new in _told(first, second):
        if key == SEED or _changes_nothing(key) or _same_content(key, first, second):
            continue
        found.append(Difference(key, new, old))
    if first.trained != second.trained:
        found.append(Difference("algorithm", first.method.label, second.method.label))
    found += _other_data(first.identity, second.identity)
    for name in ("step", "samples"):
        if getattr(first, name) != getattr(second, name):
            found.append(Difference(name, getattr(first, name), getattr(second, name)))
    return found


def plain_for(group: RunGroup, groups: Sequence[RunGroup]) -> RunGroup | None:
    """The line of the plain algorithm that the group is to be compared with; None where there is none."""
    if group.method.is_plain or not group.first.trained:
        return None
    for other in groups:
        if other.method == group.method.plain:
            keys = {difference.key for difference in differences_of(other.first, group.first)}
            if keys <= METHOD_KEYS:
                return other
    return None


def _told(first: Result, second: Result) -> Iterable[tuple[str, Any, Any]]:
    """(key, the second's value, the first's) by the comparison that decides whether a run may go on."""
    defaults = second.identity.get("defaults")
    if not isinstance(defaults, Mapping):
        defaults = None
    return differences(second.recipe.model_dump(mode="json"), first.recipe, defaults)


def _changes_nothing(key: str) -> bool:
    return may_change(key) and not any(fnmatchcase(key, pattern) for pattern in DECIDING)


def _same_content(key: str, first: Result, second: Result) -> bool:
    """Whether the key says where something lies that is the same in both runs, or is compared by its content."""
    if key in BY_CONTENT:
        model, other = first.identity.get("model"), second.identity.get("model")
        return model is not None and model == other
    places = [SETTINGS + name for name in place_settings(first.environment.name)]
    return names_a_place(key, places) and bool(first.identity) and bool(second.identity)


def _other_data(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """The model and the files of data whose content is another; nothing where a run noted none."""
    found = []
    model, other = first.get("model"), second.get("model")
    if model and other and model != other:
        found.append(Difference("content of model.path", "one", "another"))
    before, after = _hashes(first), _hashes(second)
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            found.append(Difference(f"content of {SETTINGS}{name}", before[name][:8], after[name][:8]))
    return found


def _hashes(identity: Mapping[str, Any]) -> dict[str, str]:
    data = identity.get("data")
    if not isinstance(data, Mapping):
        return {}
    found = {}
    for name, entry in data.items():
        if isinstance(entry, Mapping):
            found[str(name)] = str(entry.get("sha256"))
    return found


def _one_of_each_seed(number: int, members: Sequence[Result]) -> RunGroup:
    kept: dict[int, Result] = {}
    again: list[Result] = []
    for result in members:
        if result.seed in kept:
            again.append(result)
        else:
            kept[result.seed] = result
    return RunGroup(number, [kept[seed] for seed in sorted(kept)], left_out=again)


def _differs(group: RunGroup, before: Sequence[RunGroup]) -> tuple[int, list[Difference]] | None:
    """From the line before it that it is most alike."""
    nearest: tuple[int, list[Difference]] | None = None
    for other in before:
        if other.environment != group.environment or other.method != group.method:
            continue
        found = differences_of(other.first, group.first)
        if nearest is None or len(found) < len(nearest[1]):
            nearest = other.number, found
    return nearest


def _rank(members: Sequence[Result]) -> tuple[Any, ...]:
    result = members[0]
    return result.environment.name, result.method.rank, str(result.recipe.model.path), result.step
