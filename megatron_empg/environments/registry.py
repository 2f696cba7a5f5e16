"""Environments by the name a recipe gives them: built in, installed as an entry point, or a class of a module.

A package offers an environment by the entry point group `megatron_empg.environments`; ``module:Class`` names one
that is merely importable.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from megatron_empg.environments.base import EpisodeLimits, TaskSource
from megatron_empg.environments.settings import EnvironmentSettings, data_paths, keys_of_places, read_settings

GROUP = "megatron_empg.environments"
# Named here too, as an image may hold this package without having it installed.
_HERE = "megatron_empg.environments"
BUILT_IN = {
    "alfworld": f"{_HERE}.alfworld.source:AlfWorld",
    "deep_search": f"{_HERE}.deep_search.source:DeepSearch",
    "scienceworld": f"{_HERE}.scienceworld.source:ScienceWorld",
    "sokoban": f"{_HERE}.sokoban.source:Sokoban",
    "webshop": f"{_HERE}.webshop.source:WebShop",
}


def installed() -> dict[str, str]:
    """{name: "module:Class"} of all environments that have a name. A built-in name cannot be taken."""
    # What stands in brackets are extras, of which nobody asks today.
    found = {point.name: point.value.partition("[")[0].strip() for point in sorted(entry_points(group=GROUP))}
    return found | BUILT_IN


def origins() -> dict[str, str]:
    """{name: the package that brings it, with its version} of all environments that have a name."""
    found: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP)):
        package = point.dist
        found[point.name] = f"{package.name} {package.version}" if package is not None else point.value
    return found | dict.fromkeys(BUILT_IN, "built in")


def is_known(name: str) -> bool:
    """Whether `name` is an installed environment's, or has the form of a class's; nothing is imported."""
    return ":" in name or name in installed()


def unknown(name: str) -> str:
    """What to say of a name that is not known."""
    return (
        f"environment name {name!r} is unknown; allowed: {', '.join(sorted(installed()))}, or module:Class of a "
        "task source"
    )


def plugin(name: str) -> type[TaskSource]:
    """The task source called `name`. Raises ValueError for one that is unknown, absent or something else."""
    where: str | None = name
    if ":" not in name:
        where = installed().get(name)
    if where is None:
        raise ValueError(unknown(name))
    module, _, attribute = where.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a module of somebody's may fail of anything
        said = str(error) or type(error).__name__
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            said += "; install its package, or name the folder it lies in: PYTHONPATH=FOLDER"
        raise ValueError(f"environment {name!r} ({where}) cannot be imported: {said}") from error
    if not isinstance(found, type) or not issubclass(found, TaskSource):
        raise ValueError(
            f"environment {name!r} ({where}) is not a subclass of megatron_empg.environments.TaskSource"
        )
    if not isinstance(found.Settings, type) or not issubclass(found.Settings, EnvironmentSettings):
        raise ValueError(f"environment {name!r} ({where}): its Settings do not derive from EnvironmentSettings")
    return found


def make_task_source(
    name: str, *, max_turns: int = 8, step_timeout: float | None = None, **settings: Any
) -> TaskSource:
    """The task source called `name`, for episodes of `max_turns` turns, each step within `step_timeout` seconds.

    Raises ValueError for an unknown name or an impossible setting.
    """
    kind = plugin(name)
    read = read_settings(kind.Settings, settings, name)
    return kind(read, EpisodeLimits(max_turns, step_timeout))


def default_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the environment `name` does where `settings` say nothing, as JSON has it; empty for an unknown name.

    Data and services, which are at places of their own, are left out.
    """
    try:
        return plugin(name).defaults(settings)
    except ValueError:
        return {}


def turns_are_samples(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether episodes have a token sequence for each turn; False for what is refused elsewhere."""
    return _turns_are_samples(name, json.dumps(settings, sort_keys=True, default=str))


@cache
def _turns_are_samples(name: str, settings: str) -> bool:
    """A plan asks for each of its layouts, and to look a plug-in up takes milliseconds."""
    try:
        kind = plugin(name)
        return kind.turns_are_samples(read_settings(kind.Settings, json.loads(settings), name))
    except ValueError:
        return False


def caveats(name: str, settings: Mapping[str, Any]) -> list[str]:
    """What the environment `name` says is not comparable; empty for what is refused elsewhere."""
    try:
        kind = plugin(name)
        return list(kind.caveats(read_settings(kind.Settings, settings, name)))
    except (ValueError, OSError):
        return []


def place_settings(name: str) -> set[str]:
    """Settings that name data or a service: what they name counts, not where it lies. Empty if unknown."""
    try:
        return keys_of_places(plugin(name).Settings)
    except ValueError:
        return set()


def data_files(name: str, settings: Mapping[str, Any]) -> dict[str, Path]:
    """{setting: file} of an environment's data, defaults included; empty for what is refused elsewhere."""
    try:
        return data_paths(read_settings(plugin(name).Settings, settings, name))
    except ValueError:
        return {}
