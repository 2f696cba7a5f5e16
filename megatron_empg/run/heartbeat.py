"""Where a rank is: a thread of each writes it to the run folder, where the watchdog reads it."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_empg.common.files import put_json
from megatron_empg.run.names import RunPaths
from megatron_empg.upstream.torch_distributed import collectives_begun, recorded_collectives

INTERVAL = 2.0
"""Seconds between two heartbeats of a rank that stays in its phase; one that enters another writes at once."""
PHASE_LIMIT = 900.0
"""Seconds a phase may take in which no collective ends, unless the rank knows better."""


@dataclass
class Beat:
    """Where a rank is. `limit`: seconds it may stay there."""

    rank: int
    node: str
    pid: int
    beat: int
    step: int
    phase: str
    collectives: int
    where: str
    limit: float

    @property
    def place(self) -> tuple[int, str, int]:
        """What changes when the rank gets on."""
        return self.step, self.phase, self.collectives

    def __str__(self) -> str:
        return (
            f"rank {self.rank} on {self.node} (pid {self.pid}): step {self.step}, {self.phase}, collective "
            f"{self.collectives}, in {self.where}"
        )


_WHOLE, _TEXT = (int,), (str,)
_KINDS: Mapping[str, tuple[type, ...]] = {
    "rank": _WHOLE,
    "node": _TEXT,
    "pid": _WHOLE,
    "beat": _WHOLE,
    "step": _WHOLE,
    "phase": _TEXT,
    "collectives": _WHOLE,
    "where": _TEXT,
    "limit": (int, float),
}
"""What a heartbeat's fields may be. JSON's true is no whole number."""


class Heartbeat:
    """A rank's: set `step`, call `enter(phase)`; a thread writes. `limits`: seconds by phase."""

    def __init__(self, run_folder: Path, rank: int, limits: Mapping[str, float] | None = None) -> None:
        self._paths, self._rank, self._limits = RunPaths(run_folder), rank, dict(limits or {})
        self._node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        self._main = threading.main_thread().ident or 0
        self.step, self.phase = 0, "start"
        self._stopped, self._entered = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._paths.heartbeats.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._entered.set()
        self._thread.join()

    def enter(self, phase: str) -> None:
        """The rank now does this."""
        self.phase = phase
        self._entered.set()

    def _write_all(self) -> None:
        number, dumped = 0, False
        while not self._stopped.is_set():
            with suppress(OSError):  # a full disk must not end the training
                self._write(number)
                if not dumped and self._paths.dump_request.exists():
                    dumped = True
                    dump(self._paths.flight_recorder, self._rank)
            number += 1
            self._entered.wait(INTERVAL)
            self._entered.clear()
        self._paths.heartbeat(self._rank).unlink(missing_ok=True)

    def _write(self, number: int) -> None:
        phase = self.phase  # which another thread may change at any moment
        limit = self._limits.get(phase, PHASE_LIMIT)
        begun, where = collectives_begun(), self._where()
        beat = Beat(self._rank, self._node, os.getpid(), number, self.step, phase, begun, where, limit)
        put_json(self._paths.heartbeat(self._rank), asdict(beat), durable=False)

    def _where(self) -> str:
        """The main thread's innermost frame, and the innermost one of this package."""
        stack = traceback.extract_stack(sys._current_frames().get(self._main))
        own = [frame for frame in stack if "megatron_empg" in frame.filename]
        named = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in [*own[-1:], *stack[-1:]]]
        return " > ".join(dict.fromkeys(named))


def dump(folder: Path, rank: int) -> None:
    """The stacks of this process's threads, and the flight recorder's last collectives where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"stacks_rank_{rank}.txt").open("w", encoding="utf-8") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    recorded = recorded_collectives()
    if recorded is not None:
        (folder / f"collectives_rank_{rank}.json").write_bytes(recorded)


def read_beats(folder: Path, since: float = 0.0) -> list[Beat]:
    """All ranks' last heartbeats, without those from before `since`, in seconds since 1970 by the file system."""
    found = [read_beat(path, since) for path in RunPaths(folder).all_heartbeats()]
    return [beat for beat in found if beat is not None]


def read_beat(path: Path, since: float = 0.0) -> Beat | None:
    """One rank's last heartbeat; None where there is none from after `since`."""
    try:
        if path.stat().st_mtime < since:
            return None
        beat = Beat(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None  # being replaced, or left from another version
    if all(type(value) in _KINDS[name] for name, value in asdict(beat).items()):
        return beat
    return None
