"""Facts of all nodes at rank 0, through the store; clocks are compared on the way."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from megatron_empg.cluster.preflight.facts import ClockFacts, NodeFacts
from megatron_empg.cluster.preflight.judge import CheckFinding

if TYPE_CHECKING:
    import torch.distributed as dist

_TURNS = 5
_TURN_LIMIT = 5.0


def now() -> float:
    """This node's clock; EMPG_PREFLIGHT_CLOCK_OFFSET (seconds) is added, to rehearse a wrong one."""
    return time.time() + float(os.environ.get("EMPG_PREFLIGHT_CLOCK_OFFSET", "0"))


def answer_clock(store: dist.Store, node: int) -> None:
    """Rank 0's side of `ask_clock`; gives up on a node that does not ask."""
    import torch.distributed as dist

    with contextlib.suppress(dist.DistError, RuntimeError):
        for turn in range(_TURNS):
            store.wait([f"clock/{node}/{turn}/ask"], timedelta(seconds=_TURN_LIMIT))
            store.set(f"clock/{node}/{turn}/answer", repr(now()))


def ask_clock(store: dist.Store, node: int, wait: float) -> ClockFacts | None:
    """This clock against rank 0's by the quickest of a few turns (Cristian 1989), once rank 0 is ready."""
    import torch.distributed as dist

    best: ClockFacts | None = None
    with contextlib.suppress(dist.DistError, RuntimeError):
        store.wait([f"clock/{node}/go"], timedelta(seconds=wait))
        for turn in range(_TURNS):
            before = now()
            store.set(f"clock/{node}/{turn}/ask", "")
            store.wait([f"clock/{node}/{turn}/answer"], timedelta(seconds=_TURN_LIMIT))
            there = float(store.get(f"clock/{node}/{turn}/answer"))
            after = now()
            measured = ClockFacts(offset=(before + after) / 2 - there, uncertain=(after - before) / 2)
            if best is None or measured.uncertain < best.uncertain:
                best = measured
    return best


def gather(
    store: dist.Store, own: NodeFacts, nodes: int, limit: float
) -> tuple[list[NodeFacts], list[CheckFinding]]:
    """Rank 0: all nodes' facts; findings name the nodes that did not come within ``limit`` seconds."""
    own.clock = ClockFacts(offset=0.0, uncertain=0.0)
    come = [own]
    awaited = set(range(1, nodes))
    deadline = time.monotonic() + limit
    while awaited and time.monotonic() < deadline:
        for node in sorted(awaited):
            if store.check([f"facts/{node}"]):
                facts = NodeFacts.from_json(store.get(f"facts/{node}"))
                store.set(f"clock/{node}/go", "")
                answer_clock(store, node)
                with contextlib.suppress(RuntimeError):
                    store.wait([f"clock/{node}/done"], timedelta(seconds=_TURN_LIMIT))
                    facts.clock = ClockFacts.model_validate_json(store.get(f"clock/{node}/done"))
                if facts.clock is None:
                    facts.unanswered["clock"] = "the clock could not be compared"
                come.append(facts)
                awaited.discard(node)
        time.sleep(0.05)
    names = _names(nodes)
    fix = "see whether the node is up and reaches rank 0's address; exclude it (sbatch --exclude) until then"
    lost = [
        CheckFinding(names[i], "answer", "FAIL", f"no facts within {limit:.0f} s", fix) for i in sorted(awaited)
    ]
    return come, lost


def send(store: dist.Store, own: NodeFacts, node: int, limit: float) -> int | None:
    """Other nodes: hand over the facts, compare the clocks, wait for the exit code (None: rank 0 has gone)."""
    import torch.distributed as dist

    store.set(f"facts/{node}", own.model_dump_json())
    clock = ask_clock(store, node, limit)
    if clock:
        store.set(f"clock/{node}/done", clock.model_dump_json())
    try:
        store.wait(["exit code"], timedelta(seconds=limit))
        code = int(store.get("exit code"))
        store.set(f"left/{node}", "")
    except (dist.DistError, RuntimeError):
        return None
    return code


def _names(nodes: int) -> list[str]:
    """Slurm's names for the nodes of the step, else numbers."""
    listed = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    if listed:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            names = subprocess.run(
                ["scontrol", "show", "hostnames", listed], capture_output=True, text=True, timeout=10, check=True
            ).stdout.split()
            if len(names) == nodes:
                return names
    return [f"node {number}" for number in range(nodes)]
