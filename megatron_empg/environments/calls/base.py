"""Tools, calls of them, and what a call syntax is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from megatron_empg.common.errors import EmpgError
from megatron_empg.environments.base import Message

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
TYPES: dict[str, str] = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}
"""JSON schema types that an argument may have, and what an observation calls them."""


class MalformedCall(EmpgError, ValueError):
    """A turn that is no call; its text is the observation to give."""


@dataclass(frozen=True)
class Tool:
    """One thing that a policy can call.

    `description` goes on from the name: "shows the page of a title." `parameters` is the JSON schema of the
    arguments, an object of texts, numbers and booleans. `thought` says what one thinks before such a call, and
    `example` what each argument is, in words; `short` says the latter in one word, for reminders. `ends`: whether
    the call ends the task.

    Raises ValueError for a schema or a name that no call could be read by.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    thought: str
    example: Mapping[str, Any]
    short: Mapping[str, Any]
    ends: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a tool is named {self.name!r}; a name is letters, digits, _ and -, at most 64")
        if self.parameters.get("type") != "object":
            raise ValueError(f'the parameters of the tool {self.name} are no JSON schema of the type "object"')
        for argument, schema in self.properties.items():
            if schema.get("type") not in TYPES:
                raise ValueError(
                    f"the argument {argument!r} of the tool {self.name} has the type {schema.get('type')!r}; "
                    f"allowed: {', '.join(TYPES)}"
                )
        for argument in (*self.required, *self.example, *self.short):
            if argument not in self.properties:
                raise ValueError(f"the tool {self.name} has no argument {argument!r} among its properties")

    @property
    def properties(self) -> Mapping[str, Mapping[str, Any]]:
        """{argument: its schema}."""
        found: Mapping[str, Mapping[str, Any]] = self.parameters.get("properties", {})
        return found

    @property
    def required(self) -> tuple[str, ...]:
        """The arguments that every call gives."""
        return tuple(self.parameters.get("required", ()))

    @property
    def function(self) -> dict[str, Any]:
        """The tool as chat templates and OpenAI-compatible servers take it."""
        described = self.description[:1].upper() + self.description[1:]
        parameters = dict(self.parameters)
        return {
            "type": "function",
            "function": {"name": self.name, "description": described, "parameters": parameters},
        }


def text_tool(
    name: str, description: str, argument: str, *, thought: str, example: str, short: str, ends: bool = False
) -> Tool:
    """A tool whose one argument is a text."""
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string", "description": example}},
        "required": [argument],
    }
    return Tool(name, description, parameters, thought, {argument: example}, {argument: short}, ends)


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool."""

    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ExampleTurn:
    """What was thought and called, and what came of it; None where the task ended."""

    thought: str
    call: ToolCall
    observation: str | None


@dataclass(frozen=True)
class Example:
    """A worked example, from a question to its answer."""

    question: str
    turns: tuple[ExampleTurn, ...]

    def written(self, write: Callable[[str, ToolCall], str]) -> str:
        """The question, and a turn or its result a line; `write` makes the text of a turn."""
        lines = [f"Question: {self.question}"]
        for turn in self.turns:
            lines.append(write(turn.thought, turn.call))
            if turn.observation is not None:
                lines.append(f"Result: {turn.observation}")
        return "\n".join(lines)


class CallSyntax(Protocol):
    """What a policy is told before an episode, and how its turns are written and read.

    `template_tools` are given to the chat template as tools=, `observation_role` is the role of the messages that
    answer turns, and `reminder` ends the observation of a turn that could not be read.
    """

    @property
    def tools(self) -> tuple[Tool, ...]: ...
    @property
    def template_tools(self) -> tuple[dict[str, Any], ...]: ...
    @property
    def observation_role(self) -> Literal["user", "tool"]: ...
    @property
    def reminder(self) -> str: ...

    def messages(self, question: str, max_turns: int) -> list[Message]:
        """What stands before the first turn: the rules, where they are told, and the question."""
        ...

    def write(self, thought: str, call: ToolCall) -> str:
        """A turn as the policy writes it."""
        ...

    def parse(self, text: str) -> ToolCall:
        """Read a turn, in time proportional to its length. Raises MalformedCall and nothing else."""
        ...

    def tool_lines(self) -> str:
        """What a message says of the tools, ending in a sentence."""
        ...

    def example_lines(self) -> str:
        """A worked example, in turns of this syntax."""
        ...

    def not_shown_in(self, text: str) -> tuple[str, ...]:
        """The tools of which a policy that reads `text` would not know how they are called."""
        ...


def question_alone(question: str) -> Message:
    """The message that asks."""
    return Message(role="user", content=question)


def turn_count(max_turns: int) -> str:
    """ "1 turn" or "at most 8 turns"."""
    if max_turns == 1:
        return "1 turn"
    return f"at most {max_turns} turns"


def either(names: Sequence[str]) -> str:
    """ "search , visit or answer"."""
    first = " , ".join(names[:-1])
    if first:
        return f"{first} or {names[-1]}"
    return names[-1]


def without_end(text: str, marks: Sequence[str]) -> str:
    """The text without any blanks and texts of end tokens at its end."""
    end = len(text)
    while True:
        before = end
        while end and text[end - 1].isspace():
            end -= 1
        for mark in marks:
            if text.endswith(mark, 0, end):
                end -= len(mark)
        if end == before:
            return text[:end]


def whole_text(name: str, text: str) -> str:
    """A text argument that can go on to a tool. Raises MalformedCall for an empty one, or half a character."""
    if not text.strip():
        raise MalformedCall(f"malformed call : the {name} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedCall(
            f"malformed call : the {name} holds half a surrogate pair , which is no text"
        ) from None
    return text
