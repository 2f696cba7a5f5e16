"""The text of a turn: one thought, then one call. How it is written and read."""

import re
from typing import Literal, NamedTuple

Tool = Literal["search", "visit", "answer"]
TAGS = tuple(f"<{slash}{name}>" for name in ("think", "search", "visit", "answer") for slash in ("", "/"))

_TURN = re.compile(r"\s*<think>.*?</think>\s*<(search|visit|answer)>([^<>]*)</\1>\s*", re.DOTALL)
_END_OF_TURN = re.compile(r"(<\|im_end\|>|<\|endoftext\|>|\s)+$")


class Call(NamedTuple):
    """One tool call."""

    tool: Tool
    argument: str


class MalformedCall(ValueError):
    """A turn that is no call; its text is the observation to give."""


def format_action(thought: str, call: Call) -> str:
    """A turn as the policy writes it. Blanks stand before words and never before a tag, as in the prompt:
    a byte-level tokenizer then spells a name the same wherever it is copied to."""
    return f"<think> {thought}</think><{call.tool}> {call.argument}</{call.tool}>"


def parse_action(action: str) -> Call:
    """Read a turn. Raises MalformedCall."""
    match = _TURN.fullmatch(_END_OF_TURN.sub("", action))
    if match is None:
        raise MalformedCall("malformed call : think , then one search , visit or answer")
    argument = " ".join(match[2].split())
    if not argument:
        raise MalformedCall(f"malformed call : the {match[1]} is empty")
    return Call(match[1], argument)  # type: ignore[arg-type]
