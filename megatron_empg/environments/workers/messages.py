"""What is asked of a worker and what it answers. Answers are checked: an environment may do anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

from megatron_empg.environments.base import EpisodeLimits, Opening, StepResult, Task
from megatron_empg.environments.shapes import checked_opening, checked_result
from megatron_empg.environments.workers import wire


@dataclass(frozen=True)
class BeginRequest:
    """Build the task source and warm it up. `settings` are JSON; `limits` those of its episodes."""

    environment: str
    settings: str
    limits: EpisodeLimits


@dataclass(frozen=True)
class ResetRequest:
    """Make an environment and reset it."""

    task: Task


@dataclass(frozen=True)
class StepRequest:
    """Step the environment."""

    action: str


@dataclass(frozen=True)
class CloseRequest:
    """Close the environment."""


@dataclass(frozen=True)
class DoneAnswer:
    """Carried out; there is nothing to tell."""


@dataclass(frozen=True)
class OpenedAnswer:
    """What a reset gave."""

    opening: Opening


@dataclass(frozen=True)
class SteppedAnswer:
    """What a step gave."""

    result: StepResult


@dataclass(frozen=True)
class RaisedAnswer:
    """The environment raised: the exception in one line, and the end of its traceback."""

    error: str
    traceback: str


Request = BeginRequest | ResetRequest | StepRequest | CloseRequest
Answer = DoneAnswer | OpenedAnswer | SteppedAnswer | RaisedAnswer

_KINDS: dict[type[Request | Answer], str] = {
    BeginRequest: "Begin",
    ResetRequest: "Reset",
    StepRequest: "Step",
    CloseRequest: "Close",
    DoneAnswer: "Done",
    OpenedAnswer: "Opened",
    SteppedAnswer: "Stepped",
    RaisedAnswer: "Raised",
}
"""What each message is called on the wire."""


def encode(message: Request | Answer) -> bytes:
    """The message as it goes over the wire. Raises TypeError or ValueError when a part is no JSON."""
    return wire.to_bytes({"kind": _KINDS[type(message)], **asdict(message)})


def read_request(body: bytes) -> Request:
    """What the parent asks, which is taken at its word."""
    fields = wire.from_bytes(body)
    kind = fields.pop("kind")
    if kind == "Begin":
        return BeginRequest(fields["environment"], fields["settings"], EpisodeLimits(**fields["limits"]))
    if kind == "Reset":
        task = fields["task"]
        task["tools"] = tuple(task["tools"])
        return ResetRequest(Task(**task))
    if kind == "Step":
        return StepRequest(fields["action"])
    return CloseRequest()


def read_answer(body: bytes) -> Answer:
    """What a worker answers. Raises ValueError saying what is wrong with it."""
    fields = wire.from_bytes(body)
    kind = None
    if isinstance(fields, dict):
        kind = fields.pop("kind", None)
    if kind == "Done":
        return DoneAnswer()
    if kind == "Opened":
        return OpenedAnswer(_opening(_fields(fields, "opening")))
    if kind == "Stepped":
        return SteppedAnswer(_step_result(_fields(fields, "result")))
    if kind == "Raised":
        return RaisedAnswer(_one_of(fields, "error", str), _one_of(fields, "traceback", str))
    raise ValueError("it is not an answer")


def _opening(fields: dict[str, Any]) -> Opening:
    return checked_opening(Opening(**_known(fields, Opening)))


def _step_result(fields: dict[str, Any]) -> StepResult:
    return checked_result(StepResult(**_known(fields, StepResult)))


def _known(fields: dict[str, Any], kind: type[Opening | StepResult]) -> dict[str, Any]:
    """The fields of such a message, of which none may be missing."""
    names = [field.name for field in dataclass_fields(kind)]
    for name in names:
        if name not in fields:
            raise ValueError(f"{name} is missing")
    return {name: fields[name] for name in names}


def _fields(fields: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = _one_of(fields, name, dict)
    return found


def _one_of(fields: dict[str, Any], name: str, *kinds: Callable[..., Any]) -> Any:
    """The field, of exactly one of these types: True is no number."""
    if name not in fields:
        raise ValueError(f"{name:.40} is missing")
    value = fields[name]
    if type(value) not in kinds:
        raise ValueError(f"{name:.40} is of type {type(value).__name__}")
    return value
