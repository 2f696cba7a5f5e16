"""What the facts of many nodes mean: one function per check, a finding per node. Pure.

A check that could not be made is SKIP with the reason, never PASS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_empg.cluster.preflight.facts import NodeFacts

Status = Literal["PASS", "WARN", "FAIL", "SKIP"]
GIB = 2**30


@dataclass(frozen=True)
class CheckFinding:
    """One check on one node; ``fix`` where there is something to do."""

    node: str
    check: str
    status: Status
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class CheckVerdict:
    """What a check finds, without the name of the node or GPU."""

    status: Status
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Requirements:
    """What a node must offer. Sizes in GiB, speeds in MB/s, times in seconds."""

    use_gpus: bool | None = None
    """None: GPUs are looked at where there are any, and then every node must have them."""
    gpus: int | None = None
    """So many on every node; None: as many as the other nodes have."""
    gpu_memory_free: float = 0.9
    """Part of a GPU's memory that nobody else may hold."""
    disk: float = 10.0
    write_speed: float = 100.0
    shared_memory: float = 1.0
    host_memory: float = 0.0
    """For saving a checkpoint."""
    trainer_nodes: tuple[str, ...] | None = None
    """Those that save checkpoints; None: all of them."""
    clock_skew: float = 1.0
    pins: dict[str, str] = field(default_factory=dict)
    """Wanted version by package."""


Check = Callable[[Sequence[NodeFacts], Requirements], Iterator[CheckFinding]]
Look = Callable[[NodeFacts, Any, Requirements], CheckVerdict]
"""What to say of a node, by a part of its facts."""

NOT_GIVEN = {
    "disk": "not checked: neither a recipe nor --run-folder was given",
    "model": "not checked: neither a recipe nor --model was given",
    "data": "not checked: neither a recipe nor --data was given",
    "busy_ports": "not checked: no --ports were given",
}
"""Why a part was not looked at, by the part."""


def judge(nodes: Sequence[NodeFacts], wanted: Requirements, checks: Sequence[Check]) -> list[CheckFinding]:
    """All checks on all nodes."""
    findings: list[CheckFinding] = []
    for check in checks:
        findings += check(nodes, wanted)
    return findings


def by_node(check: str, *, part: str) -> Callable[[Look], Check]:
    """Make a check of a function that looks at a part of each node by itself.

    Where the part did not answer, or was not looked at, the finding says so, and the function is not asked.
    """

    def decorated(look: Look) -> Check:
        def run(nodes: Sequence[NodeFacts], wanted: Requirements) -> Iterator[CheckFinding]:
            for node in nodes:
                found = without(node, part) or look(node, getattr(node, part), wanted)
                yield CheckFinding(node.name, check, found.status, found.detail, found.fix)

        return run

    return decorated


def without(node: NodeFacts, part: str) -> CheckVerdict | None:
    """What is said of a node whose part is not there; None where it is."""
    if part in node.unanswered:
        fix = "see whether the file system or driver behind it hangs on that node"
        return CheckVerdict("FAIL", node.unanswered[part], fix)
    if getattr(node, part) is None:
        return CheckVerdict("SKIP", NOT_GIVEN.get(part, "not looked at"))
    return None


def unlike(values: Mapping[str, Hashable]) -> dict[str, str]:
    """Nodes whose value is not the majority's, each with what is said of it; all of them where there is none."""
    counts = Counter(values.values()).most_common()
    if len(counts) < 2:
        return {}
    usual, votes = counts[0]
    if votes == counts[1][1]:
        return {node: f"{value}, and the nodes do not agree" for node, value in values.items()}
    odd = {}
    for node, value in values.items():
        if value != usual:
            odd[node] = f"{value}, the other nodes have {usual}"
    return odd
