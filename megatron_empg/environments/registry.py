"""Task sources by the name a recipe gives them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_empg.environments.base import TaskSource


def _deep_search(**settings: Any) -> TaskSource:
    from megatron_empg.environments.deep_search.source import DeepSearchTaskSource

    return DeepSearchTaskSource(**settings)


DATA_SETTINGS = {"deep_search": ("corpus",)}
"""Settings that name a file of an environment's data: a run is that of the file's content, wherever it lies."""
SERVICE_SETTINGS = {"deep_search": ("search_url",)}
"""Settings that say where a service is reached, which may be elsewhere at each start of a run."""

TASK_SOURCES: dict[str, Callable[..., TaskSource]] = {"deep_search": _deep_search}


def make_task_source(
    name: str, *, max_turns: int = 8, step_timeout: float | None = None, **settings: Any
) -> TaskSource:
    """The task source called `name`, for episodes of `max_turns` turns, each step within `step_timeout` seconds.

    Raises ValueError for an unknown name or an impossible setting.
    """
    if name not in TASK_SOURCES:
        allowed = ", ".join(sorted(TASK_SOURCES))
        raise ValueError(f"environment name {name!r} is unknown; allowed: {allowed}")
    try:
        return TASK_SOURCES[name](max_turns=max_turns, step_timeout=step_timeout, **settings)
    except TypeError as error:
        raise ValueError(f"environment {name!r} cannot be made from {sorted(settings)}: {error}") from error


def default_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the environment `name` does where `settings` say nothing, as JSON has it; empty for an unknown name.

    Files and services, which have tables of their own, are left out.
    """
    if name != "deep_search":
        return {}
    from megatron_empg.environments.deep_search.source import source_defaults

    elsewhere = (*DATA_SETTINGS[name], *SERVICE_SETTINGS[name])
    return {key: value for key, value in source_defaults(settings).items() if key not in elsewhere}


def data_files(name: str, settings: Mapping[str, Any]) -> dict[str, Path]:
    """{setting: file} of an environment's data, defaults included; empty for an unknown name."""
    from megatron_empg.environments.deep_search.source import DEFAULT_CORPUS

    defaults = {"deep_search": {"corpus": DEFAULT_CORPUS}}.get(name, {})
    return {key: Path(str(settings.get(key, defaults[key]))) for key in DATA_SETTINGS.get(name, ())}
