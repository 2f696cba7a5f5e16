"""Turns in tags: one thought, then one call, as in ``<think> so</think><search> words</search>``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from megatron_empg.environments.base import Message
from megatron_empg.environments.calls.base import (
    Example,
    MalformedCall,
    Tool,
    ToolCall,
    either,
    question_alone,
    turn_count,
    whole_text,
    without_end,
)

_ENDS_OF_TURN = ("<|im_end|>", "<|endoftext|>")
_RULES = """\
Answer the question by looking things up. Write one turn at a time and wait for its result. A turn is one short \
thought and then one call, in tags, with nothing after it:
{tools} You have {turns}, the answer's included.

Example. {example}"""


class Tags:
    """The syntax of `tools`, each of which has one text as its argument.

    Where `told` is false, nothing is said of it: the policy knows it from training. Raises ValueError for other
    tools.
    """

    template_tools: tuple[dict[str, Any], ...] = ()
    observation_role: Literal["user", "tool"] = "user"

    def __init__(self, tools: Sequence[Tool], example: Example, *, told: bool = True) -> None:
        self.tools = tuple(tools)
        self.reminder = ""
        self._example = example
        self._told = told
        self._argument = {tool.name: _only_text(tool) for tool in self.tools}
        names = "|".join(map(re.escape, self._argument))
        # What a policy writes may be long and senseless: reading it takes time in proportion, whatever it is.
        self._call = re.compile(rf"<({names})>([^<>]*)</\1>")
        if told:
            shown = (_call(tool.name, tool.short[self._argument[tool.name]]) for tool in self.tools)
            self.reminder = (
                f" ; write <think> thought</think> and then {' or '.join(shown)} , and nothing after it"
            )

    def messages(self, question: str, max_turns: int) -> list[Message]:
        """A system message unless it is not told, and the question."""
        if not self._told:
            return [question_alone(question)]
        return [Message(role="system", content=self.system_message(max_turns)), question_alone(question)]

    def system_message(self, max_turns: int) -> str:
        """What the policy is told before the question, when it has `max_turns` turns for it."""
        return _RULES.format(tools=self.tool_lines(), turns=turn_count(max_turns), example=self.example_lines())

    def write(self, thought: str, call: ToolCall) -> str:
        """A turn. Blanks stand before words and never before a tag: a byte-level tokenizer then spells a name the
        same wherever it is copied to."""
        return f"<think> {thought}</think>{_call(call.tool, call.arguments[self._argument[call.tool]])}"

    def parse(self, text: str) -> ToolCall:
        """Read a turn: a thought in its tags, then exactly one call. An argument holds no < or >, and its blanks
        and line breaks count as one blank. Raises MalformedCall."""
        begins, _, rest = without_end(text, _ENDS_OF_TURN).lstrip().partition("<think>")
        _, closes, call = rest.partition("</think>")
        match = None
        if closes and not begins:
            match = self._call.fullmatch(call.strip())
        if match is None:
            raise MalformedCall(f"malformed call : think , then one {either(list(self._argument))}")
        argument = whole_text(match[1], " ".join(match[2].split()))
        return ToolCall(match[1], {self._argument[match[1]]: argument})

    def tool_lines(self) -> str:
        """A turn of each tool, in words, and then what they do."""
        turns = [self.write(tool.thought, ToolCall(tool.name, dict(tool.example))) for tool in self.tools]
        done = " ".join(f"{tool.name} {tool.description}" for tool in self.tools)
        return "\n".join([*turns, done])

    def example_lines(self) -> str:
        """The question, and a turn or its result a line."""
        return self._example.written(self.write)

    def not_shown_in(self, text: str) -> tuple[str, ...]:
        """The tools without a pair of tags in `text`; all of them where a thought has none."""
        if not _shows("think", text):
            return tuple(self._argument)
        return tuple(name for name in self._argument if not _shows(name, text))


def _only_text(tool: Tool) -> str:
    """The name of its argument. Raises ValueError unless it is one text."""
    names = list(tool.properties)
    if len(names) != 1 or tool.properties[names[0]]["type"] != "string":
        raise ValueError(
            f"the tool {tool.name} takes {', '.join(names) or 'nothing'}; tags hold one text, so use the prompt "
            '"tools" for it'
        )
    return names[0]


def _call(tool: str, argument: str) -> str:
    return f"<{tool}> {argument}</{tool}>"


def _shows(name: str, text: str) -> bool:
    return text.partition(f"<{name}>")[2].find(f"</{name}>") >= 0
