"""The text of a turn: one thought, then one call. How it is written and read."""

import re
from typing import Literal, NamedTuple

Tool = Literal["search", "visit", "answer"]
TAGS = tuple(f"<{slash}{name}>" for name in ("think", "search", "visit", "answer") for slash in ("", "/"))

# What a policy writes may be long and senseless: reading it takes time in proportion, whatever it is.
_CALL = re.compile(r"<(search|visit|answer)>([^<>]*)</\1>")
_ENDS_OF_TURN = ("<|im_end|>", "<|endoftext|>")


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
    """Read a turn: a thought in its tags, then exactly one call. Raises MalformedCall."""
    begins, _, rest = _without_end(action).lstrip().partition("<think>")
    _, closes, call = rest.partition("</think>")
    match = None if begins or not closes else _CALL.fullmatch(call.strip())
    if match is None:
        raise MalformedCall("malformed call : think , then one search , visit or answer")
    argument = " ".join(match[2].split())
    if not argument:
        raise MalformedCall(f"malformed call : the {match[1]} is empty")
    return Call(match[1], argument)  # type: ignore[arg-type]


def _without_end(action: str) -> str:
    """Without the blanks and the texts of end tokens at its end, in any number."""
    end = len(action)
    while True:
        before = end
        while end and action[end - 1].isspace():
            end -= 1
        for mark in _ENDS_OF_TURN:
            if action.endswith(mark, 0, end):
                end -= len(mark)
        if end == before:
            return action[:end]
