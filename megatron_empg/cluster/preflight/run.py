"""Preflight from start to verdict, on one machine or as a step with a task on every node."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from megatron_empg.cluster.place import PlaceError, RankPlace
from megatron_empg.cluster.preflight.collect import PreflightOptions, collect_node
from megatron_empg.cluster.preflight.facts import ClockFacts, NodeFacts
from megatron_empg.cluster.preflight.gather import gather, send
from megatron_empg.cluster.preflight.judge import CheckFinding, Requirements, judge
from megatron_empg.cluster.preflight.judge_gpus import GPU_CHECKS
from megatron_empg.cluster.preflight.judge_hosts import HOST_CHECKS
from megatron_empg.cluster.preflight.report import show, verdict, write_json
from megatron_empg.common.errors import EmpgError

LAST_PORT = 65535
# Compared between nodes even when no requirements file is given.
PACKAGES = ("megatron_empg", "torch", "vllm", "megatron-core", "transformer-engine", "transformers", "numpy")


class PreflightError(EmpgError, RuntimeError):
    """An option of preflight that cannot be read."""

    exit_code = 2


def run_preflight(
    asked: PreflightOptions, wanted: Requirements, *, limit: float, json_path: Path | None = None
) -> int:
    """Exit code 1 on FAIL, else 0. Node 0 prints and writes; every node returns the same.

    ``limit``: seconds that node 0 waits for the others. Raises PlaceError when node 0 is out of reach.
    """
    place = RankPlace.from_environment()
    if place.local_rank:
        return 0  # one task a node is enough
    if not place.hosts_store:  # torchrun's store listens on its port already
        asked = replace(asked, ports=tuple(port for port in asked.ports if port != place.port))
    own = collect_node(place.node, asked)
    if place.nodes == 1:
        own.clock = ClockFacts(offset=0.0, uncertain=0.0)
        return _conclude([own], judge([own], wanted, GPU_CHECKS + HOST_CHECKS), json_path)
    import torch.distributed as dist

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"preflight/{attempt}", place.connect(limit))
    if place.node_rank:
        code = send(store, own, place.node_rank, limit + 30)
        if code is None:
            raise PlaceError(f"node {place.node}: rank 0 took its facts and then fell silent")
        return code
    nodes, lost = gather(store, own, place.nodes, limit)
    code = _conclude(nodes, [*lost, *judge(nodes, wanted, GPU_CHECKS + HOST_CHECKS)], json_path)
    store.set("exit code", str(code))
    left = [f"left/{number}" for number in range(1, place.nodes)]
    patience = timedelta(seconds=10)
    if lost:  # there is no use in waiting for them
        patience = timedelta(0)
    with contextlib.suppress(dist.DistError, RuntimeError):  # the store ends with this process
        store.wait(left, patience)
    return code


def _conclude(nodes: Sequence[NodeFacts], findings: Sequence[CheckFinding], json_path: Path | None) -> int:
    show(findings)
    if json_path:
        write_json(json_path, nodes, findings)
    failed = sorted({finding.node for finding in findings if finding.status == "FAIL"})
    if not failed:
        print(f"preflight: {verdict(findings)}")
        return 0
    print(f"preflight: {verdict(findings)} on {', '.join(failed)}")
    return 1


def read_pins(path: Path) -> dict[str, str]:
    """Package versions of a requirements file's ``name==version`` lines. Raises PreflightError when unreadable."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PreflightError(f"cannot read the requirements {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PreflightError(f"cannot read the requirements {path}: not UTF-8") from None
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", text, re.MULTILINE))


def parse_ports(text: str) -> tuple[int, ...]:
    """``29500-29520`` or ``8000,8001``. Raises PreflightError naming the part at fault."""
    ports: list[int] = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part)
        first = last = 0
        if found is not None:
            first, last = int(found[1]), int(found[2] or found[1])
        if not 0 < first <= last <= LAST_PORT:
            raise PreflightError(
                f"--ports has {part[:40]!r}; write FIRST-LAST or single ports with commas, 1 to {LAST_PORT}"
            )
        ports += range(first, last + 1)
    return tuple(ports)
