"""What a rule of the conformance test says of an environment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from megatron_empg.environments.conformance.subject import EnvironmentUnderTest

Verdict = Literal["kept", "doubtful", "broken", "not tried"]


class RuleBroken(Exception):
    """The rule is broken; the text says by what."""


class RuleDoubtful(Exception):
    """Perhaps it is broken, or it costs what it need not."""


class RuleNotTried(Exception):
    """There is nothing to try the rule on; the text says what is missing."""


@dataclass(frozen=True)
class RuleFinding:
    """`rule` is a whole sentence that holds where the verdict is "kept"; `detail` says what was met otherwise."""

    rule: str
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True)
class Rule:
    """`check` raises one of the exceptions above; any other is the environment's own, which breaks it too."""

    sentence: str
    check: Callable[[EnvironmentUnderTest], Awaitable[None] | None]


def refuse(faults: list[str], most: int = 3) -> None:
    """Raises RuleBroken if there are any, naming the first of them."""
    if faults:
        more = ""
        if len(faults) > most:
            more = f"; and {len(faults) - most} more"
        raise RuleBroken("; ".join(faults[:most]) + more)
