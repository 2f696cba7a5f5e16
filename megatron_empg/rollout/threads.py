"""Text work off the event loop, where it is long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


async def apart(large: bool, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Do large work in a thread, so that it does not hold up the other episodes, and small work at once."""
    if large:
        return await asyncio.to_thread(work, *args, **kwargs)
    return work(*args, **kwargs)
