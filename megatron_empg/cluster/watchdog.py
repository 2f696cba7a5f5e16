"""A rank that hangs is found and named: each rank's heartbeat says where it is, and one process reads them all.

    python -m megatron_empg.cluster.watchdog RUN_FOLDER      # a task on each node; ends with HUNG when ranks hang

A heartbeat is ``heartbeats/rank_N.json`` of the run folder, written by a thread of the rank. A rank whose file no
longer changes is stopped or gone; when all files change but no rank gets on, those behind the others are at fault.
Each node's task also writes its GPUs' errors there; one that makes the node unfit counts as a hanging rank does.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from megatron_empg.cluster.gpu_watch import EventLog, leave_out, say, watch_node
from megatron_empg.common.errors import HUNG
from megatron_empg.common.options import number, parse_command_line
from megatron_empg.run.heartbeat import INTERVAL, Beat, read_beats
from megatron_empg.run.names import RunPaths


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
        # A step waits for all ranks, so as long as one moves, those that do not may be waiting for it.
        if not self._beats or not all(self._stands_still(rank, now) for rank in self._beats):
            return []
        least = min((beat.step, beat.collectives) for beat in self._beats.values())
        behind = [beat for beat in self._beats.values() if (beat.step, beat.collectives) == least]
        if len(behind) == len(self._beats):
            behind = [beat for beat in behind if "distributed" not in beat.where] or behind
        return [f"{beat}; there for {now - self._moved[beat.rank]:.0f} s" for beat in behind]

    def _stands_still(self, rank: int, now: float) -> bool:
        limit = self._beats[rank].limit
        if self._stall is not None:
            limit = min(self._stall, limit)
        return now - self._moved[rank] > limit


def watch(folder: Path, *, silence: float, stall: float | None) -> list[str]:
    """Wait until a GPU fails, or ranks hang and the others have written what they did: a line for each culprit."""
    paths = RunPaths(folder)
    watchdog, events = Watchdog(silence=silence, stall=stall), EventLog(folder)
    while True:
        for event in events.new():
            if event.fatal:
                leave_out(folder, os.environ.get("SLURM_JOB_ID", "-"), event)
                return [f"unfit: {event}"]
            say(str(event))
        watchdog.read(read_beats(folder), time.monotonic())
        if hung := watchdog.verdict(time.monotonic()):
            paths.dump_request.touch()
            time.sleep(3 * INTERVAL)
            others = f"what the other ranks were at is in {paths.flight_recorder}"
            return [*(f"hanging: {line}" for line in hung), others]
        time.sleep(INTERVAL)


RunFolderPath = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Of the run.")]
Silence = Annotated[float, typer.Option(callback=number(above=0), help="Seconds without a heartbeat.")]
Stall = Annotated[
    float | None,
    typer.Option(callback=number(above=0), help="Seconds without a collective, if less than the phase's own."),
]


@dataclass(frozen=True)
class WatchdogArguments:
    """Watches a run: silent ranks, ranks that stand still, GPUs that fail."""

    run_folder: RunFolderPath
    silence: Silence = 120.0
    stall: Stall = None


def main() -> None:
    given = parse_command_line(WatchdogArguments)
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
