"""How a task uses a chat template: with which tools, and under which role the environment speaks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from megatron_empg.environments.base import Task

HistoryKind = Literal["keep", "strip"]
"""Whether the policy reads the thoughts of its earlier turns again."""


@dataclass(frozen=True)
class ChatUse:
    """`tools`: JSON schemas of functions, as the template is given them. `role`: that of observations."""

    role: Literal["user", "tool"] = "user"
    tools: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, task: Task) -> ChatUse:
        """A task's own."""
        return cls(task.observation_role, task.tools)

    @property
    def key(self) -> str:
        """Uses of the same key are the same. Raises TypeError for tools that are not JSON."""
        return json.dumps([self.role, self.tools])

    @property
    def names(self) -> list[str]:
        """Names of the tools and of their parameters. Raises ValueError for what is no schema of a function."""
        found: list[str] = []
        for tool in self.tools:
            function = tool.get("function", tool)
            name = None
            if isinstance(function, dict):
                name = function.get("name")
            if not isinstance(name, str) or not name:
                raise ValueError(
                    f"task.tools has {json.dumps(tool)[:200]}, which names no function: give JSON schemas as "
                    '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
                )
            found.append(name)
            parameters = function.get("parameters") or {}
            found += parameters.get("properties") or {}
        return found

    def with_plain_text(self, signs: str) -> ChatUse:
        """The same tools, with a letter for each of `signs` in every name and text."""
        letters = str.maketrans(dict.fromkeys(signs, "x"))
        return ChatUse(self.role, tuple(_mapped(tool, letters) for tool in self.tools))


PLAIN = ChatUse()
"""No tools, and observations are user messages."""


def _mapped(value: Any, letters: dict[int, str]) -> Any:
    if isinstance(value, str):
        return value.translate(letters)
    if isinstance(value, dict):
        return {key.translate(letters): _mapped(item, letters) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, letters) for item in value]
    return value
