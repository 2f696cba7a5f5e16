"""A call as a JSON object, read strictly: what is wrong with it is said, and nothing is guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from megatron_empg.environments.calls.base import TYPES, MalformedCall, Tool, ToolCall, either, whole_text

_BLANKS = re.compile(r"[ \t\n\r]*")
ARGUMENTS_KEYS = ("arguments", "parameters")
"""What Hermes and Qwen, and what Llama 3 call the arguments."""


def read_object(text: str, begin: int) -> tuple[dict[str, Any], int]:
    """The JSON object that begins at `begin` (blanks before it do not matter), and where it ends. Raises
    MalformedCall."""
    blanks = _BLANKS.match(text, begin)
    assert blanks is not None, "any number of blanks matches, none too"
    start = blanks.end()
    if not text.startswith("{", start):
        raise MalformedCall(f"malformed call : a JSON object should begin at {_excerpt(text, start)}")
    try:
        found, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        at = _excerpt(text, error.pos)
        raise MalformedCall(f"malformed call : no valid JSON : {error.msg} , at {at}") from None
    except RecursionError:
        raise MalformedCall("malformed call : the JSON is nested too deep") from None
    except MalformedCall:
        raise
    except ValueError:
        raise MalformedCall("malformed call : the JSON holds a number with too many digits") from None
    return found, end


def read_call(fields: Mapping[str, Any], tools: Mapping[str, Tool]) -> ToolCall:
    """The call that an object says, of one of `tools`. Raises MalformedCall."""
    name = fields.get("name")
    if not isinstance(name, str):
        raise MalformedCall('malformed call : "name" must be the name of a tool')
    if name not in tools:
        raise MalformedCall(f"malformed call : there is no tool {_cut(name)} , only {either(list(tools))}")
    given = [key for key in ARGUMENTS_KEYS if key in fields]
    if len(given) != 1:
        count = "two"
        if not given:
            count = "no"
        raise MalformedCall(f'malformed call : {count} objects of arguments ; write "arguments" once')
    for key in fields:
        if key not in ("name", *given) and not (key == "type" and fields[key] == "function"):
            raise MalformedCall(f"malformed call : a call has no {_cut(key)} , only name and {given[0]}")
    arguments = fields[given[0]]
    if not isinstance(arguments, dict):
        raise MalformedCall(f'malformed call : "{given[0]}" is {_kind(arguments)} , not an object')
    return ToolCall(name, _checked(tools[name], arguments))


def write_call(call: ToolCall, arguments_key: str) -> str:
    """The call as one line of JSON."""
    return json.dumps({"name": call.tool, arguments_key: call.arguments}, ensure_ascii=False)


def _checked(tool: Tool, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, texts without blanks at their ends. Raises MalformedCall."""
    for argument in arguments:
        if argument not in tool.properties:
            allowed = "none"
            if tool.properties:
                allowed = either(list(tool.properties))
            raise MalformedCall(f"malformed call : {tool.name} takes no {_cut(argument)} , only {allowed}")
    for argument in tool.required:
        if argument not in arguments:
            raise MalformedCall(f"malformed call : {tool.name} needs {argument}")
    checked: dict[str, Any] = {}
    for argument, value in arguments.items():
        wanted = str(tool.properties[argument]["type"])
        if not _is(value, wanted):
            raise MalformedCall(
                f"malformed call : the {argument} of {tool.name} is {_kind(value)} , not {TYPES[wanted]}"
            )
        checked[argument] = whole_text(argument, value).strip() if isinstance(value, str) else value
    return checked


def _is(value: Any, wanted: str) -> bool:
    """Whether a value of JSON has that type of JSON schema. A boolean is no number, though Python thinks so."""
    if isinstance(value, bool):
        return wanted == "boolean"
    kinds: dict[str, type | tuple[type, ...]] = {"string": str, "integer": int, "number": (int, float)}
    return wanted in kinds and isinstance(value, kinds[wanted])


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    if not isinstance(value, list):
        return "an object"
    return "a list"


def _without_repetition(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise MalformedCall(f"malformed call : {_cut(key)} is given twice")
            seen.add(key)
    return found


def _no_number(constant: str) -> NoReturn:
    raise MalformedCall(f"malformed call : {constant} is no JSON")


def _cut(text: str) -> str:
    """A short quotation; half a surrogate pair is spelled out."""
    shown = repr(text[:40])
    if len(shown) <= 42 and len(text) <= 40:
        return shown
    return shown[:40] + "..."


def _excerpt(text: str, start: int) -> str:
    if start >= len(text):
        return "the end"
    return _cut(text[start : start + 41])


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repetition, parse_constant=_no_number)
