"""What an agent looks things up with, and where the look-up runs."""

from __future__ import annotations

from typing import Protocol

from megatron_empg.common.errors import EmpgError
from megatron_empg.environments.blocking import in_thread


class QueryRefused(EmpgError, ValueError):
    """A query that will not be answered. Its text is the observation: what a policy asks is its own doing."""


class SearchServiceError(EmpgError, RuntimeError):
    """The service did not answer; the episode that asked ends as an error."""


class BlockingTools(Protocol):
    """Look-ups that take their time. Both may raise QueryRefused."""

    def search(self, query: str) -> str:
        """What is found for some words."""
        ...

    def visit(self, title: str) -> str:
        """The page of a title."""
        ...


class Tools(Protocol):
    """The same on an event loop, which they do not hold up."""

    async def search(self, query: str) -> str:
        """What is found for some words."""
        ...

    async def visit(self, title: str) -> str:
        """The page of a title."""
        ...

    async def close(self) -> None:
        """Let go of connections, once all episodes are over. May be called twice."""
        ...


class ThreadedTools:
    """Blocking tools, each look-up in a thread."""

    def __init__(self, tools: BlockingTools) -> None:
        self._tools = tools

    async def search(self, query: str) -> str:
        return await in_thread(self._tools.search, query)

    async def visit(self, title: str) -> str:
        return await in_thread(self._tools.visit, title)

    async def close(self) -> None:
        """They hold no connections."""


class ImmediateTools:
    """Blocking tools for an episode that has the process to itself."""

    def __init__(self, tools: BlockingTools) -> None:
        self._tools = tools

    async def search(self, query: str) -> str:
        return self._tools.search(query)

    async def visit(self, title: str) -> str:
        return self._tools.visit(title)

    async def close(self) -> None:
        """They hold no connections."""
