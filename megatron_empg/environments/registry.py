"""Task sources by the name a recipe gives them."""

from collections.abc import Callable
from typing import Any

from megatron_empg.environments.base import TaskSource


def _deep_search(**settings: Any) -> TaskSource:
    from megatron_empg.environments.deep_search.source import DeepSearchTaskSource

    return DeepSearchTaskSource(**settings)


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
