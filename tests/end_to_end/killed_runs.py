"""Kills the processes of a run, and says what it learnt all the same."""

import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from megatron_empg.common.jsonl import read_lines
from megatron_empg.run.metric_names import by_clock

SECONDS = 900
"""How long a run may take on a busy machine."""
OF_FAULTS = re.compile(r"rollout/(engine_|engines_|episodes_moved)")
"""Metrics that tell what befell the engines: they must differ."""


def end(process: "subprocess.Popen[str]") -> str:
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return output


def starts(folder: Path) -> list[int]:
    """The checkpoint that each start went on from."""
    lines = (folder / "starts").read_text(encoding="utf-8").splitlines()
    return [int(line.split()[1]) for line in lines]


def processes(launcher: int, kind: str) -> list[psutil.Process]:
    """The run's living ones of that kind."""
    found = []
    for child in psutil.Process(launcher).children(recursive=True):
        try:
            if kind_of(child) == kind:
                found.append(child)
        except psutil.Error:
            continue
    return found


def kind_of(process: psutil.Process) -> str:
    """The kind, or "" for a process that is of none."""
    kind, parent = kind_by_command(process), process.parent()
    forked = parent is not None and kind_by_command(parent) == kind
    # A core is forked from its server; it has the server's command line unless it has a title of its own.
    if "EngineCore" in process.name() or (kind == "engine" and forked):
        return "engine core"
    return "" if forked else kind


def kind_by_command(process: psutil.Process) -> str:
    words = process.cmdline()
    if words and words[0].endswith("srun"):  # which has the words of what it runs
        return ""
    for module, kind in (
        ("megatron_empg.launch.torchrun", "torchrun"),
        ("megatron_empg.rollout.server", "engine"),
        ("megatron_empg.launch.rollout_service", "driver"),
        ("megatron_empg.trainer.worker", "rank"),
        ("megatron_empg.environments.deep_search.search_service", "search"),
    ):
        if module in words:
            return kind
    return ""


def kill(process: "subprocess.Popen[str]", kind: str) -> None:
    """Kill the run's process of that kind, and wait until another one is in its place."""
    before = processes(process.pid, kind)
    assert before, f"no process of the run is {kind}"
    before[0].send_signal(signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while not set(processes(process.pid, kind)) - set(before):
        assert process.poll() is None, end(process)
        assert time.monotonic() < deadline, f"{kind} was killed and not started again"
        time.sleep(0.1)


def learnt(folder: Path) -> list[dict[str, Any]]:
    """What two runs that learn the same have in common."""
    return [
        {key: value for key, value in line.items() if not by_clock(key) and not OF_FAULTS.match(key)}
        for line in read_lines(folder / "metrics.jsonl")
    ]
