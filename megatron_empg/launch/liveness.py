"""What a server that was healthy must go on answering, or it counts as frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LivenessProbe:
    """A GET request, and how long a live server may leave it unanswered. Example: LivenessProbe("/health", 60)."""

    path: str
    silent_seconds: float


def server_probes(silence_seconds: float) -> Sequence[LivenessProbe]:
    """The probe of a server that is one process, which may be silent for `silence_seconds`."""
    return (LivenessProbe("/health", silence_seconds),)


def engine_probes(silence_seconds: float, core_silence_seconds: float) -> Sequence[LivenessProbe]:
    """The probes of an engine, whose server answers while its core hangs.

    vLLM's server asks the core, a process of its own, for /weight_info, and answers /health itself. The core
    answers nothing in a weight transfer, so `core_silence_seconds` is above the longest one.
    """
    return (*server_probes(silence_seconds), LivenessProbe("/weight_info", core_silence_seconds))
