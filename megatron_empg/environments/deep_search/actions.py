"""The calls of Deep Search, in whatever syntax a policy writes them; in tags unless another is given."""

from __future__ import annotations

from typing import NamedTuple, cast

from megatron_empg.environments.calls import base
from megatron_empg.environments.calls.base import CallSyntax, MalformedCall
from megatron_empg.environments.calls.tags import Tags
from megatron_empg.environments.deep_search.agent_tools import ARGUMENT, TOOLS, ToolName

__all__ = ["TAGS", "MalformedCall", "SearchToolCall", "Tool", "format_action", "gold_action", "parse_action"]

Tool = ToolName
TAGS = tuple(f"<{slash}{name}>" for name in ("think", "search", "visit", "answer") for slash in ("", "/"))
_UNTOLD = Tags(TOOLS, base.Example("", ()), told=False)


class SearchToolCall(NamedTuple):
    """One tool call. Each tool takes one text."""

    tool: Tool
    argument: str

    @property
    def general(self) -> base.ToolCall:
        """The same with its argument's name."""
        return base.ToolCall(self.tool, {ARGUMENT[self.tool]: self.argument})


def format_action(thought: str, call: SearchToolCall, syntax: CallSyntax = _UNTOLD) -> str:
    """A turn as the policy writes it."""
    return syntax.write(thought, call.general)


def parse_action(action: str, syntax: CallSyntax = _UNTOLD) -> SearchToolCall:
    """Read a turn. Raises MalformedCall."""
    call = syntax.parse(action)
    name = cast(ToolName, call.tool)
    return SearchToolCall(name, call.arguments[ARGUMENT[name]])


def gold_action(thought: str, answer: str, syntax: CallSyntax = _UNTOLD) -> str | None:
    """The turn that gives `answer`; None where the syntax cannot say it, as tags cannot hold < or >."""
    call = SearchToolCall("answer", answer)
    action = format_action(thought, call, syntax)
    try:
        read = parse_action(action, syntax)
    except MalformedCall:
        return None
    if read.argument.split() != answer.split():
        return None
    return action
