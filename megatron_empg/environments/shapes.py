"""Whether what an environment returns has the form that the seam asks for."""

from __future__ import annotations

import math
from typing import Any

from megatron_empg.environments.base import Opening, StepResult

ROLES = ("system", "user", "assistant", "tool")


def message_faults(messages: Any) -> list[str]:
    """What is wrong with chat messages, one by one."""
    if not isinstance(messages, list | tuple):
        return [f"messages that are a {type(messages).__name__}, not a list"]
    faults: list[str] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            faults.append(f"message {number} that is no {{role, content}}")
        elif message["role"] not in ROLES:
            faults.append(f"message {number} of the role {message['role']!r}; allowed: {', '.join(ROLES)}")
        elif not isinstance(message["content"], str):
            faults.append(f"message {number} whose content is no text")
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


def opening_faults(opening: Any) -> list[str]:
    """What is wrong with what `reset` returned."""
    if not isinstance(opening, Opening):
        return [f"a {type(opening).__name__}, not an Opening"]
    return message_faults(opening.messages) + _anchor_faults(opening.anchor)


def result_faults(result: Any) -> list[str]:
    """What is wrong with what `step` returned."""
    if not isinstance(result, StepResult):
        return [f"a {type(result).__name__}, not a StepResult"]
    faults = _anchor_faults(result.anchor)
    if not isinstance(result.done, bool):
        faults.append(f"done {result.done!r:.40}, which is neither True nor False")
    if (result.observation is None) != bool(result.done):
        faults.append("an observation where it is done" if result.done else "no observation where it goes on")
    if result.observation is not None and not isinstance(result.observation, str):
        faults.append(f"an observation that is a {type(result.observation).__name__}, not a text")
    if not isinstance(result.reward, int | float) or not math.isfinite(result.reward):
        faults.append(f"a reward of {result.reward!r:.40}, which is no finite number")
    for name in ("success", "malformed"):
        value = getattr(result, name)
        if not isinstance(value, bool | None):
            faults.append(f"{name} {value!r:.40}, which is neither True nor False nor None")
    return faults + _info_faults(result.info)


def _anchor_faults(anchor: Any) -> list[str]:
    return [] if isinstance(anchor, str | None) else [f"an anchor that is a {type(anchor).__name__}, not a text"]


def _info_faults(info: Any) -> list[str]:
    if not isinstance(info, dict):
        return [f"info that is a {type(info).__name__}, not a dict"]
    faults: list[str] = []
    for key, value in info.items():
        if not isinstance(key, str) or not isinstance(value, bool | int | float | str):
            faults.append(f"info[{key!r:.40}] of {value!r:.40}, which is no text, number, True or False")
    return faults
