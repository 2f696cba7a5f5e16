"""A rank that hangs is found and named: each rank's heartbeat says where it is, and one process reads them all.

    python -m megatron_empg.cluster.watchdog RUN_FOLDER      # a task on each node; exit code 17 when ranks hang

A heartbeat is ``heartbeats/rank_N.json`` of the run folder, written by a thread of the rank. A rank whose file no
longer changes is stopped or gone; when all files change but no rank gets on, those behind the others are at fault.
Each node's task also writes its GPUs' errors there; one that makes the node unfit counts as a hanging rank does.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_empg.cluster.gpu_watch import EventLog, leave_out, say, watch_node
from megatron_empg.run.checkpoint_folders import last_step, step_folder

HUNG = 17
"""Exit code of the watchdog when ranks hang or a GPU fails."""
INTERVAL = 2.0
"""Seconds between two heartbeats of a rank."""
PHASE_LIMIT = 900.0
"""Seconds a phase may take in which no collective ends, unless the rank knows better."""
SLOWEST_READ = 500e6
"""Bytes of a checkpoint a second that all ranks together read at least."""


def reading_seconds(run_folder: Path) -> float:
    """What reading the newest checkpoint may take, to be added to the limit of the phase "start"; 0 without one.

    Ranks read on their own and no collective ends meanwhile; a policy of 32 billion parameters has 460 GB.
    """
    checkpoints, size = run_folder / "checkpoints", 0
    newest = last_step(checkpoints)
    if not newest:
        return 0.0
    for path in step_folder(checkpoints, newest).rglob("*"):
        with suppress(OSError):  # an old one may be taken away meanwhile
            size += path.stat().st_size
    return size / SLOWEST_READ


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


class Heartbeat:
    """A rank's: set `step`, call `enter(phase)`; a thread writes. `limits`: seconds by phase."""

    def __init__(self, run_folder: Path, rank: int, limits: Mapping[str, float] | None = None) -> None:
        self._folder, self._rank, self._limits = run_folder, rank, dict(limits or {})
        self._node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        self._main = threading.main_thread().ident or 0
        self.step, self.phase = 0, "start"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        (self._folder / "heartbeats").mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def enter(self, phase: str) -> None:
        """The rank now does this."""
        self.phase = phase

    def _write_all(self) -> None:
        number, dumped = 0, False
        while not self._stopped.is_set():
            with suppress(OSError):  # a full disk must not end the training
                self._write(number)
                if not dumped and (self._folder / "heartbeats/DUMP").exists():
                    dumped = True
                    dump(self._folder / "flight_recorder", self._rank)
            number += 1
            self._stopped.wait(INTERVAL)
        (self._folder / f"heartbeats/rank_{self._rank}.json").unlink(missing_ok=True)

    def _write(self, number: int) -> None:
        limit = self._limits.get(self.phase, PHASE_LIMIT)
        beat = Beat(
            self._rank, self._node, os.getpid(), number, self.step, self.phase, collectives(), self._where(), limit
        )
        path = self._folder / f"heartbeats/rank_{self._rank}.json"
        aside = path.with_suffix(".writing")
        aside.write_text(json.dumps(asdict(beat)), encoding="utf-8")
        os.replace(aside, path)

    def _where(self) -> str:
        """The main thread's innermost frame, and the innermost one of this package."""
        stack = traceback.extract_stack(sys._current_frames().get(self._main))
        own = [frame for frame in stack if "megatron_empg" in frame.filename]
        named = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in [*own[-1:], *stack[-1:]]]
        return " > ".join(dict.fromkeys(named))


def collectives() -> int:
    """Collectives this rank has begun, over all its process groups."""
    dist = sys.modules.get("torch.distributed")  # never import from this thread: the main one may be importing
    if dist is None or not hasattr(dist, "is_initialized") or not dist.is_initialized():
        return 0
    total = 0
    for group in list(dist.distributed_c10d._world.pg_map):
        with suppress(RuntimeError):  # a group that counts none
            total += group._get_sequence_number_for_group()
    return total


def dump(folder: Path, rank: int) -> None:
    """The stacks of this process's threads, and the flight recorder's last collectives where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"stacks_rank_{rank}.txt").open("w", encoding="utf-8") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    c10d = sys.modules.get("torch._C._distributed_c10d")
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
        if hasattr(c10d, name):
            (folder / f"collectives_rank_{rank}.json").write_bytes(getattr(c10d, name)())
            return


class Watchdog:
    """Reads heartbeats; times are its own clock's, so that those of the nodes may differ."""

    def __init__(self, *, silence: float, stall: float | None = None) -> None:
        self._silence, self._stall = silence, stall
        self._beats: dict[int, Beat] = {}
        self._heard: dict[int, float] = {}
        self._moved: dict[int, float] = {}

    def read(self, beats: Iterable[Beat], now: float) -> None:
        """Take note of what the ranks say at time `now`."""
        found = {beat.rank: beat for beat in beats}
        for rank in self._beats.keys() - found.keys():  # it has ended in order
            del self._beats[rank], self._heard[rank], self._moved[rank]
        for rank, beat in found.items():
            before = self._beats.get(rank)
            if before is None or beat.beat != before.beat:
                self._heard[rank] = now
            if before is None or beat.place != before.place:
                self._moved[rank] = now
            self._beats[rank] = beat

    def verdict(self, now: float) -> list[str]:
        """The ranks that hang, each with where it was last; empty while all is well."""
        silent = [rank for rank, heard in self._heard.items() if now - heard > self._silence]
        if silent:
            return [f"{self._beats[rank]}; silent for {now - self._heard[rank]:.0f} s" for rank in sorted(silent)]
        still = [
            now - self._moved[rank] > (beat.limit if self._stall is None else min(self._stall, beat.limit))
            for rank, beat in self._beats.items()
        ]
        if not still or not all(still):
            return []
        least = min((beat.step, beat.collectives) for beat in self._beats.values())
        behind = [beat for beat in self._beats.values() if (beat.step, beat.collectives) == least]
        if len(behind) == len(self._beats):
            behind = [beat for beat in behind if "distributed" not in beat.where] or behind
        return [f"{beat}; there for {now - self._moved[beat.rank]:.0f} s" for beat in behind]


def read_beats(folder: Path) -> list[Beat]:
    """All ranks' last heartbeats."""
    found = []
    for path in sorted((folder / "heartbeats").glob("rank_*.json")):
        with suppress(OSError, ValueError, TypeError):  # being replaced, or left from another version
            found.append(Beat(**json.loads(path.read_text(encoding="utf-8"))))
    return found


def watch(folder: Path, *, silence: float, stall: float | None) -> list[str]:
    """Until a GPU fails, or ranks hang and the others have written what they were at: says who, a line each."""
    watchdog, events = Watchdog(silence=silence, stall=stall), EventLog(folder)
    while True:
        for event in events.new():
            if event.fatal:
                leave_out(folder, os.environ.get("SLURM_JOB_ID", "-"), event)
                return [f"unfit: {event}"]
            say(str(event))
        watchdog.read(read_beats(folder), time.monotonic())
        if hung := watchdog.verdict(time.monotonic()):
            (folder / "heartbeats/DUMP").touch()
            time.sleep(3 * INTERVAL)
            others = f"what the other ranks were at is in {folder / 'flight_recorder'}"
            return [*(f"hanging: {line}" for line in hung), others]
        time.sleep(INTERVAL)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m megatron_empg.cluster.watchdog")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--silence", type=float, default=120.0, help="seconds without a heartbeat")
    parser.add_argument("--stall", type=float, help="seconds without a collective, if less than the phase's own")
    given = parser.parse_args()
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    if os.environ.get("SLURM_PROCID", "0") != "0":
        watch_node(given.run_folder, node)
        while True:  # a task that ends might end its step
            signal.pause()
    threading.Thread(target=watch_node, args=(given.run_folder, node), daemon=True).start()
    found = watch(given.run_folder, silence=given.silence, stall=given.stall)
    for line in found:
        say(line)
    raise SystemExit(HUNG)


if __name__ == "__main__":
    main()
