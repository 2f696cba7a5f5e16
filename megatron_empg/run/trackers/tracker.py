"""What a tracker is told of a run, and what it does."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_empg.common.files import put_text
from megatron_empg.run.config import SftLoggingConfig

ID_CHARACTERS = 16


class Tracker(Protocol):
    """One run in a tracker. Whatever it raises, training goes on."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step's finite metrics. Steps rise."""
        ...

    def close(self) -> None:
        """The run has ended in order; bring to its place what is not there yet."""
        ...


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker is told of it."""

    project: str
    """What its key below `logging` says."""
    name: str
    """The run folder's, which also groups the parts of a run that crashed."""
    identity: Path
    """The file that keeps what the tracker calls the run, so that a continuation goes on with the same curves."""
    logs: Path
    """A folder for files of the tracker's own."""
    recipe: Mapping[str, Any]
    """The resolved one."""

    def known(self) -> str | None:
        """What the tracker calls the run; None where it does not know it yet."""
        try:
            return self.identity.read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None

    def remember(self, called: str) -> str:
        """Keep what the tracker calls the run, and return it."""
        put_text(self.identity, called)
        return called

    def known_or_new(self) -> str:
        """The name that is kept, or a new one, which is then kept; for trackers that take any name."""
        return self.known() or self.remember(secrets.token_hex(ID_CHARACTERS // 2))


@dataclass(frozen=True)
class TrackerKind:
    """A tracker that a recipe may ask for."""

    key: str
    """Its key below `logging`; also the name of its package and of the extra that installs it."""
    title: str
    project: Callable[[SftLoggingConfig], str | None]
    """What its key says; None where the recipe does not ask for it."""
    fault: Callable[[], str | None]
    """What its variables lack for it to work, with the fix; None where they lack nothing."""
    open: Callable[[TrackedRun], Tracker]
    """Raises whatever it likes."""

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.key) is not None
