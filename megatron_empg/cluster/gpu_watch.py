"""GPU errors while a run lives: each node writes NVML's events to the run folder, where the watchdog reads them.

``heartbeats/gpu_NODE.jsonl`` has a line for each event of this start of the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_empg.cluster.preflight.gpu import FELL_OFF_THE_BUS, GpuEvents, NoNvml
from megatron_empg.cluster.preflight.judge_gpus import FATAL_XIDS
from megatron_empg.run.names import RunPaths

WAIT = 1.0
"""Seconds that NVML is asked to wait for an event."""


@dataclass(frozen=True)
class NodeEvent:
    """An event and where. ``gpu`` and ``xid`` as in GpuEvent."""

    node: str
    gpu: int | None
    xid: int | None

    @property
    def fatal(self) -> bool:
        """The node must not train on: its memory, links or bus are at fault, not the program."""
        return self.xid is None or self.xid in FATAL_XIDS

    def __str__(self) -> str:
        gpu = "a GPU"
        if self.gpu is not None:
            gpu = f"GPU {self.gpu}"
        what = "uncorrectable memory error"
        if self.xid is not None:
            what = f"Xid {self.xid}"
        return f"{gpu} of {self.node}: {what}"


def say(line: str) -> None:
    """Print it, whole whatever other threads print."""
    print(f"watchdog: {line}\n", end="", flush=True)


def watch_node(run_folder: Path, node: str) -> None:
    """Write this node's events until there can be no more; then say why and return."""
    path = RunPaths(run_folder).gpu_events(node)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with GpuEvents() as events:
            say(f"NVML's events of {node} are watched")
            while True:
                if (event := events.wait(WAIT)) is None:
                    continue
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(NodeEvent(node, event.gpu, event.xid))) + "\n")
                if event.xid == FELL_OFF_THE_BUS:  # NVML would say so again and again
                    return
    except (NoNvml, OSError) as reason:
        say(f"NVML's events of {node} are not watched: {reason}")


class EventLog:
    """What the nodes have written, each event once."""

    def __init__(self, run_folder: Path) -> None:
        self._paths = RunPaths(run_folder)
        self._read: dict[Path, int] = {}

    def new(self) -> Iterator[NodeEvent]:
        """Events since the last call; a line that is still being written waits for the next."""
        for path in self._paths.all_gpu_events():
            with suppress(OSError):  # a shared file system that has not caught up: read again next time
                lines = path.read_text(encoding="utf-8").split("\n")[:-1]
                read, self._read[path] = self._read.get(path, 0), len(lines)
                events = [_event_of(line) for line in lines[read:]]
                yield from (event for event in events if event is not None)


def _event_of(line: str) -> NodeEvent | None:
    """None for a line torn by a full disk: the watchdog must outlive it."""
    try:
        return NodeEvent(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None


def leave_out(run_folder: Path, job: str, event: NodeEvent) -> None:
    """Note that this job is to go on without that node: a line "job node what" of ``bad_nodes``."""
    with RunPaths(run_folder).bad_nodes.open("a", encoding="utf-8") as file:
        file.write(f"{job} {event.node} {event}\n")
