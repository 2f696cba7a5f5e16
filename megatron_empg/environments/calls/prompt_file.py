"""A prompt of the user's own: a text file that says first which syntax reads the turns.

    ---
    syntax: tags
    ---
    Find the answer within {max_turns} turns. Write a turn like one of these:
    {tools}

    {example}

The text is the system message. Where it holds {question} it is the user's message and the question's only place,
which suits templates without a system role. {{name}} is the text {name}; other braces mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from megatron_empg.environments.base import Message
from megatron_empg.environments.calls.base import CallSyntax, Tool, ToolCall, question_alone

LARGEST = 2**20
"""Bytes of a prompt file."""
PLACEHOLDERS = ("tools", "example", "max_turns", "question")
_HEADER = re.compile(r"---[ \t]*\n(.*?\n)?---[ \t]*\n", re.DOTALL)
_PLACEHOLDER = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|\{([A-Za-z_]\w*)\}")


class PromptFile:
    """The text of `path` as the prompt, over the syntax that its header names.

    `syntax_named` makes a syntax by its name, and raises ValueError for one that it does not know. Raises OSError,
    or ValueError that names the file, what is wrong with it, and the rule.
    """

    def __init__(self, path: Path, syntax_named: Callable[[str], CallSyntax]) -> None:
        header, self._text = _parts(path)
        try:
            self._syntax = syntax_named(_syntax_name(header))
        except ValueError as error:
            raise ValueError(f"the prompt file {path}: {error}") from None
        self._tool_lines = self._syntax.tool_lines()
        self._example_lines = self._syntax.example_lines()
        self._asks = "question" in _placeholders(self._text)
        _check(path, self._text)
        unshown = self._syntax.not_shown_in(self._filled("", 1))
        if unshown:
            raise ValueError(
                f"the prompt file {path} does not show how to call {', '.join(unshown)}: write {{tools}}, or a "
                f"turn of each, such as {self._shown(unshown[0])}"
            )

    @property
    def tools(self) -> tuple[Tool, ...]:
        return self._syntax.tools

    @property
    def template_tools(self) -> tuple[dict[str, Any], ...]:
        return self._syntax.template_tools

    @property
    def observation_role(self) -> Literal["user", "tool"]:
        return self._syntax.observation_role

    @property
    def reminder(self) -> str:
        return self._syntax.reminder

    def messages(self, question: str, max_turns: int) -> list[Message]:
        """The text and the question, or the text with the question in it."""
        text = self._filled(question, max_turns)
        if self._asks:
            return [question_alone(text)]
        return [Message(role="system", content=text), question_alone(question)]

    def write(self, thought: str, call: ToolCall) -> str:
        return self._syntax.write(thought, call)

    def parse(self, text: str) -> ToolCall:
        return self._syntax.parse(text)

    def tool_lines(self) -> str:
        return self._tool_lines

    def example_lines(self) -> str:
        return self._example_lines

    def not_shown_in(self, text: str) -> tuple[str, ...]:
        return self._syntax.not_shown_in(text)

    def _filled(self, question: str, max_turns: int) -> str:
        """The text with its places filled in one pass: what a question spells like a placeholder stays."""
        values = {
            "tools": self._tool_lines,
            "example": self._example_lines,
            "max_turns": str(max_turns),
            "question": question,
        }

        def value(match: re.Match[str]) -> str:
            if match[1]:
                return f"{{{match[1]}}}"
            return values[match[2]]

        return _PLACEHOLDER.sub(value, self._text)

    def _shown(self, name: str) -> str:
        tool = next(tool for tool in self.tools if tool.name == name)
        return repr(self.write(tool.thought, ToolCall(name, dict(tool.example))))


def _parts(path: Path) -> tuple[str, str]:
    """The header and the text. Raises OSError or ValueError."""
    with path.open("rb") as file:
        raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise ValueError(f"the prompt file {path} has more than {LARGEST} bytes; a prompt is shorter")
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file {path} is not UTF-8 ({error}); convert it") from None
    match = _HEADER.match(text)
    if match is None:
        raise ValueError(
            f"the prompt file {path} has no header; begin it with the three lines ---, syntax: tags (or "
            "another), ---"
        )
    return match[1] or "", text[match.end() :].strip()


def _syntax_name(header: str) -> str:
    """What the header says. Raises ValueError."""
    found: dict[str, str] = {}
    for line in header.splitlines():
        key, colon, value = line.partition(":")
        key = key.strip()
        if not line.strip() or key.startswith("#"):
            continue
        if not colon or key != "syntax" or key in found:
            raise ValueError(f"the header's line {line!r:.60} is not understood; it holds one line, syntax: NAME")
        found[key] = value.strip()
    if not found.get("syntax"):
        raise ValueError("the header does not say the syntax; write syntax: NAME between the lines ---")
    return found["syntax"]


def _placeholders(text: str) -> set[str]:
    return {match[2] for match in _PLACEHOLDER.finditer(text) if match[2]}


def _check(path: Path, text: str) -> None:
    """Raises ValueError for an empty text and for places that nothing fills."""
    if not text:
        raise ValueError(f"the prompt file {path} has no text below its header")
    unknown = sorted(_placeholders(text) - set(PLACEHOLDERS))
    if unknown:
        raise ValueError(
            f"the prompt file {path} holds {{{unknown[0]}}}, which nothing fills; allowed: "
            f"{', '.join(f'{{{name}}}' for name in PLACEHOLDERS)}; write {{{{{unknown[0]}}}}} for the text itself"
        )
