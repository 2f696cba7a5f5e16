"""What a server that was healthy must go on answering, or it counts as frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CORE_EVERY_SECONDS = 20.0
"""A core that sends no answer, as in a weight transfer, holds up the supervisor's look for the whole limit of the
answer: so it is asked less often."""


@dataclass(frozen=True)
class LivenessProbe:
    """A GET request, and how long a live server may leave it unanswered. Example: LivenessProbe("/health", 60)."""

    path: str
    silent_seconds: float
    every_seconds: float = 0.0
    """Between two requests at least; 0: at every look for those that are frozen."""
    any_status: bool = False
    """Whether an answer with another status than 200 is a sign of life too."""

    def is_answered(self, status: int | None) -> bool:
        """`status`: of the HTTP answer; None where there was none in time."""
        return status == 200 or (self.any_status and status is not None)


def server_probes(silence_seconds: float) -> Sequence[LivenessProbe]:
    """The probe of a server that is one process, which may be silent for `silence_seconds`."""
    return (LivenessProbe("/health", silence_seconds),)


def engine_probes(silence_seconds: float, core_silence_seconds: float) -> Sequence[LivenessProbe]:
    """The probes of an engine, whose server answers while its core hangs.

    vLLM's server asks the core, a process of its own, for /weight_info, and answers /health itself. The core
    answers nothing in a weight transfer, so `core_silence_seconds` is above the longest one.

    Only a core that hangs leaves the request unanswered. Another status than 200 is an answer: of a fault that a
    restart would not mend (this vLLM lacks the route), or that /health and the process tell (the core is dead).
    """
    core = LivenessProbe("/weight_info", core_silence_seconds, every_seconds=CORE_EVERY_SECONDS, any_status=True)
    return (*server_probes(silence_seconds), core)
