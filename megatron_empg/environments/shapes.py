"""Whether what an environment returns has the form that the seam asks for: one judgement, wherever it runs.

Numbers, truth values and texts of numpy count as what they stand for; True is no number.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from numbers import Real
from typing import Any

from megatron_empg.common.errors import EmpgError
from megatron_empg.environments.base import Opening, StepResult, Task


class InvalidAnswer(EmpgError, ValueError):
    """What an environment returned is not what it must return; the text names each fault."""


ROLES = ("system", "user", "assistant", "tool")


def message_faults(messages: Any) -> list[str]:
    """What is wrong with chat messages, one by one."""
    if not isinstance(messages, list | tuple):
        return [f"messages that are a {type(messages).__name__}, not a list"]
    faults: list[str] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            faults.append(f"message {number} that is not {{role, content}}")
        elif not isinstance(message["role"], str) or message["role"] not in ROLES:
            faults.append(f"message {number} of the role {_shown(message['role'])}; allowed: {', '.join(ROLES)}")
        elif not isinstance(message["content"], str):
            faults.append(f"message {number} whose content is not text")
    return faults


def conversation_faults(messages: list[Any]) -> list[str]:
    """What keeps a chat template from writing all that a policy is told before its first turn."""
    faults = message_faults(messages)
    if faults:
        return faults
    roles = [message["role"] for message in messages]
    if not roles:
        return ["no message at all"]
    if "system" in roles[1:]:
        faults.append("a system message that is not the first")
    if roles[-1] in ("assistant", "system"):
        faults.append(f"a last message of the {roles[-1]}'s, so that it is not the policy's turn")
    return faults


def checked_opening(answer: Any) -> Opening:
    """What `reset` returned. Raises InvalidAnswer."""
    opening = _opening_of_plain_values(answer)
    _refuse("reset", opening_faults(opening))
    checked: Opening = opening
    return checked


def checked_result(answer: Any) -> StepResult:
    """What `step` returned, with plain numbers. Raises InvalidAnswer."""
    result = _result_of_plain_values(answer)
    _refuse("step", result_faults(result))
    checked: StepResult = result
    return replace(checked, reward=float(checked.reward))


def _refuse(method: str, faults: list[str]) -> None:
    if faults:
        raise InvalidAnswer(f"{method} returned " + " and ".join(faults))


def opening_faults(opening: Any) -> list[str]:
    """What is wrong with what `reset` returned."""
    opening = _opening_of_plain_values(opening)
    if not isinstance(opening, Opening):
        return [f"a {type(opening).__name__}, not an Opening"]
    return message_faults(opening.messages) + _anchor_faults(opening.anchor)


def result_faults(result: Any) -> list[str]:
    """What is wrong with what `step` returned."""
    result = _result_of_plain_values(result)
    if not isinstance(result, StepResult):
        return [f"a {type(result).__name__}, not a StepResult"]
    faults = _anchor_faults(result.anchor)
    if not isinstance(result.done, bool):
        faults.append(f"done {_shown(result.done)}, which is neither True nor False")
    elif (result.observation is None) != result.done:
        faults.append("an observation where it is done" if result.done else "no observation where it goes on")
    if result.observation is not None and not isinstance(result.observation, str):
        faults.append(f"an observation that is a {type(result.observation).__name__}, not a text")
    if not _is_finite_number(result.reward):
        faults.append(f"a reward of {_shown(result.reward)}, which is not a finite number")
    for name in ("success", "malformed"):
        value = getattr(result, name)
        if not isinstance(value, bool | None):
            faults.append(f"{name} {_shown(value)}, which is neither True nor False nor None")
    return faults + _context_faults(result) + _info_faults(result.info)


def task_faults(task: Any) -> list[str]:
    """What is wrong with a task, but for what only all tasks together show."""
    if not isinstance(task, Task):
        return [f"a {type(task).__name__} in the place of a Task"]
    faults = message_faults(task.prompt)
    if not isinstance(task.id, str) or not task.id:
        faults.append(f"the id {_shown(task.id)}; it must be a text")
    if json_fault := _json_fault(task.payload):
        faults.append(f"a payload that is not JSON: {json_fault}")
    if not isinstance(task.kind, str) or not task.kind:
        faults.append(f"the kind {_shown(task.kind)}; it must be a text")
    if not isinstance(task.gold, str | None):
        faults.append(f"the gold {_shown(task.gold)}, a gold that is not text")
    if task.hops is not None and type(task.hops) is not int:  # True is an int too
        faults.append(f"the hops {_shown(task.hops)}; they must be a whole number or None")
    if task.observation_role not in ("user", "tool"):
        faults.append(f'the observation_role {_shown(task.observation_role)}; allowed: "user", "tool"')
    if not isinstance(task.tools, tuple) or not all(map(_is_tool, task.tools)):
        faults.append('tools that are not a tuple of {"type": "function", "function": {"name": ...}}')
    return faults


def _json_fault(payload: Any) -> str:
    """What keeps a payload from arriving unchanged in a worker process."""
    try:
        arrived = json.loads(json.dumps(payload, allow_nan=False))
        same = isinstance(payload, dict) and arrived == payload
    except RecursionError:
        return "it is nested too deeply"
    except (TypeError, ValueError) as error:
        return str(error)
    if not same:
        return "it comes back as something else"
    return ""


def _is_tool(tool: Any) -> bool:
    if not isinstance(tool, dict) or _json_fault(tool):
        return False
    function = tool.get("function")
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _is_finite_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _opening_of_plain_values(answer: Any) -> Any:
    if not isinstance(answer, Opening):
        return answer
    if isinstance(answer.messages, tuple):
        messages = list(answer.messages)
    else:
        messages = answer.messages
    return Opening(messages, _plain(answer.anchor))


def _result_of_plain_values(answer: Any) -> Any:
    if not isinstance(answer, StepResult):
        return answer
    info = answer.info
    return StepResult(
        observation=_plain(answer.observation),
        done=_plain(answer.done),
        reward=_plain(answer.reward),
        success=_plain(answer.success),
        malformed=_plain(answer.malformed),
        anchor=_plain(answer.anchor),
        info={key: _plain(value) for key, value in info.items()} if isinstance(info, dict) else info,
        context=list(answer.context) if isinstance(answer.context, tuple) else answer.context,
    )


def _plain(value: Any) -> Any:
    """A single value of numpy's as what Python has for it."""
    if type(value).__module__ != "numpy" or getattr(value, "ndim", None) != 0:
        return value
    return value.item()


def _shown(value: Any) -> str:
    """At most 40 characters, whatever `repr` does."""
    try:
        return f"{value!r:.40}"
    except Exception:
        return f"an unprintable {type(value).__name__}"


def _anchor_faults(anchor: Any) -> list[str]:
    if isinstance(anchor, str | None):
        return []
    return [f"an anchor that is a {type(anchor).__name__}, not a text"]


def _context_faults(result: StepResult) -> list[str]:
    if result.context is None:
        return []
    if result.done is True:
        return ["a context where it is done"]
    return [f"a context with {fault}" for fault in conversation_faults(result.context)]


def _info_faults(info: Any) -> list[str]:
    if not isinstance(info, dict):
        return [f"info that is a {type(info).__name__}, not a dict"]
    faults: list[str] = []
    for key, value in info.items():
        if not isinstance(key, str) or not isinstance(value, bool | int | float | str):
            faults.append(f"info[{_shown(key)}] of {_shown(value)}, which is not text, number, True or False")
    return faults
