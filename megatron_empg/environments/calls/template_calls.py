"""The chat template's own tool calls: the template shows the tools, and calls are JSON.

Two forms are read, whichever template is at work. Hermes and Qwen write::

    <tool_call>
    {"name": "search", "arguments": {"query": "words"}}
    </tool_call>

and Llama 3 the bare object, with "parameters" in place of "arguments", perhaps behind <|python_tag|>. A thought
may stand before the call, as plain text or between <think> and </think>; nothing may stand after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

from megatron_empg.environments.base import Message
from megatron_empg.environments.calls.base import (
    Example,
    MalformedCall,
    Tool,
    ToolCall,
    question_alone,
    turn_count,
    without_end,
)
from megatron_empg.environments.calls.json_calls import read_call, read_object, write_call

CallForm = Literal["hermes", "llama3"]
_ENDS_OF_TURN = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
_OPEN, _CLOSE, _PYTHON = "<tool_call>", "</tool_call>", "<|python_tag|>"
_RULES = """\
Answer the question by looking things up with the tools. Write one turn at a time: a short thought and then \
exactly one call, with nothing after it, and wait for its result. {ending}A turn without a call does nothing. \
You have {turns}, the answer's included."""


class TemplateCalls:
    """Calls of `tools` as JSON. Both forms are read; `form` is the one that is written: by reminders, examples and
    scripted turns."""

    observation_role: Literal["user", "tool"] = "tool"

    def __init__(self, tools: Sequence[Tool], example: Example, *, form: CallForm = "hermes") -> None:
        self.tools = tuple(tools)
        self.template_tools = tuple(tool.function for tool in self.tools)
        self._example = example
        self._form = form
        self._by_name = {tool.name: tool for tool in self.tools}
        first = self.tools[0]
        shown = self._written(ToolCall(first.name, dict(first.short)))
        self.reminder = f" ; write a thought and then one call such as {shown} and nothing after it"

    def messages(self, question: str, max_turns: int) -> list[Message]:
        """The rules of the task and the question. The template adds the tools and how they are called."""
        return [Message(role="system", content=self.system_message(max_turns)), question_alone(question)]

    def system_message(self, max_turns: int) -> str:
        """The rules, when there are `max_turns` turns."""
        endings = [tool.name for tool in self.tools if tool.ends]
        ending = ""
        if endings:
            ending = f"Only a call of {' or '.join(endings)} ends the task. "
        return _RULES.format(ending=ending, turns=turn_count(max_turns))

    def write(self, thought: str, call: ToolCall) -> str:
        """A turn: the thought as plain text, then the call. Raises ValueError for a thought that holds what begins
        a call."""
        if any(mark in thought for mark in ("{", _OPEN, "<think>", "</think>")):
            raise ValueError(f"the thought {thought!r:.60} holds {{ or a tag, which would be read as a call")
        return f"{thought}\n{self._written(call)}"

    def parse(self, text: str) -> ToolCall:
        """Read a turn. Raises MalformedCall."""
        body = _after_thought(without_end(text, _ENDS_OF_TURN).lstrip())
        fields, rest = _only_object(body)
        if rest:
            several = _OPEN in rest or rest.startswith(("{", ";", ",", _PYTHON))
            fault = "something stands after the call"
            if several:
                fault = "more than one call"
            raise MalformedCall(f"malformed call : {fault}")
        return read_call(fields, self._by_name)

    def tool_lines(self) -> str:
        """A tool a line, with its arguments and what it does."""
        lines = []
        for tool in self.tools:
            lines.append(f"{tool.name}({', '.join(tool.properties)}) {tool.description}")
        return "\n".join(lines)

    def example_lines(self) -> str:
        """The question, then turns and their results."""
        return self._example.written(self.write)

    def not_shown_in(self, text: str) -> tuple[str, ...]:
        """None: the template shows them all."""
        return ()

    def _written(self, call: ToolCall) -> str:
        if self._form == "llama3":
            return write_call(call, "parameters")
        return f"{_OPEN}\n{write_call(call, 'arguments')}\n{_CLOSE}"


def _only_object(body: str) -> tuple[dict[str, Any], str]:
    """The first call's object, and what follows the call. Raises MalformedCall."""
    opened, brace = body.find(_OPEN), body.find("{")
    if opened < 0 and brace < 0:
        raise MalformedCall("malformed call : there is no call")
    if opened < 0:
        return _bare_object(body, brace)
    if 0 <= brace < opened:
        # Either an argument that holds a tag, or a thought with a brace before a call in tags.
        with suppress(MalformedCall):
            return _bare_object(body, brace)
    fields, end = read_object(body, opened + len(_OPEN))
    rest = body[end:].lstrip()
    if not rest.startswith(_CLOSE):
        raise MalformedCall(f"malformed call : {_CLOSE} must follow the JSON object")
    return fields, rest.removeprefix(_CLOSE).strip()


def _bare_object(body: str, brace: int) -> tuple[dict[str, Any], str]:
    fields, end = read_object(body, brace)
    return fields, body[end:].strip()


def _after_thought(text: str) -> str:
    """What follows a thought in tags. Its first tag may be missing: some templates write it themselves. Raises
    MalformedCall for a thought without an end."""
    opened = text.startswith("<think>")
    _, closed, rest = text.partition("</think>")
    if opened and not closed:
        raise MalformedCall("malformed call : the thought is not closed with </think>")
    if opened or (closed and "{" in rest):
        return rest
    return text
