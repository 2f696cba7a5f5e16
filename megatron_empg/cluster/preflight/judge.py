"""What facts of many nodes mean: one small function a check, findings by node. Pure.

A check that could not be made is SKIP with the reason, never PASS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from megatron_empg.cluster.preflight.facts import Folder, Node

Status = Literal["PASS", "WARN", "FAIL", "SKIP"]
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One check on one node; ``fix`` where there is something to do."""

    node: str
    check: str
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


NOT_GIVEN = {
    "disk": "not checked: neither a recipe nor --run-folder was given",
    "model": "not checked: neither a recipe nor --model was given",
    "data": "not checked: neither a recipe nor --data was given",
    "busy_ports": "not checked: no --ports were given",
}
"""Why a part was not looked at, by the part."""

Check = Callable[[Sequence[Node], Requirements], Iterator[Finding]]


def judge(nodes: Sequence[Node], wanted: Requirements, checks: Sequence[Check]) -> list[Finding]:
    """All checks on all nodes."""
    return [finding for check in checks for finding in check(nodes, wanted)]


def part_of(nodes: Sequence[Node], part: str, check: str) -> Iterator[tuple[Node, Any, Finding | None]]:
    """(node, part, None), or (node, None, finding) where the part did not answer or was not looked at."""
    for node in nodes:
        if part in node.unanswered:
            fix = "see whether the file system or driver behind it hangs on that node"
            yield node, None, Finding(node.name, check, "FAIL", node.unanswered[part], fix)
        elif getattr(node, part) is None:
            yield node, None, Finding(node.name, check, "SKIP", NOT_GIVEN.get(part, "not looked at"))
        else:
            yield node, getattr(node, part), None


def unlike(values: Mapping[str, Hashable]) -> dict[str, str]:
    """Nodes whose value is not the majority's, each with what is said of it; all of them where there is none."""
    counts = Counter(values.values()).most_common()
    if len(counts) < 2:
        return {}
    tie = counts[0][1] == counts[1][1]
    return {
        node: f"{value}, " + ("and the nodes do not agree" if tie else f"the other nodes have {counts[0][0]}")
        for node, value in values.items()
        if tie or value != counts[0][0]
    }


def clock(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """Against the median of all nodes."""
    offsets = [node.clock.offset for node in nodes if node.clock]
    for node, facts, finding in part_of(nodes, "clock", "clock"):
        if finding:
            yield finding
            continue
        skew = facts.offset - median(offsets)
        text = f"{skew:+.3f} s from the nodes' median (known to {facts.uncertain:.3f} s)"
        if abs(skew) > wanted.clock_skew + facts.uncertain:
            fix = "synchronise it: chronyc makestep, or systemctl restart chronyd"
            yield Finding(node.name, "clock", "FAIL", text, fix)
        elif len(offsets) == 1:
            yield Finding(node.name, "clock", "SKIP", "one node, nothing to compare with")
        else:
            yield Finding(node.name, "clock", "PASS", text)


def disk(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """The run folder: writable, room, speed."""
    for node, facts, finding in part_of(nodes, "disk", "disk"):
        if finding:
            yield finding
        elif facts.error:
            fix = "choose another run.folder, or make it writable for this user on that node"
            yield Finding(node.name, "disk", "FAIL", facts.error, fix)
        elif facts.free < wanted.disk * GIB:
            text = f"{facts.folder}: {facts.free / GIB:.2f} GiB free, {wanted.disk:g} wanted"
            yield Finding(node.name, "disk", "FAIL", text, "free space, or choose another run.folder")
        elif facts.write_speed < wanted.write_speed * 1e6:
            text = f"{facts.folder}: writes {facts.write_speed / 1e6:.0f} MB/s, {wanted.write_speed:g} wanted"
            yield Finding(node.name, "disk", "WARN", text, "checkpoints will be slow; use a faster file system")
        else:
            text = f"{facts.free / GIB:.0f} GiB free, writes {facts.write_speed / 1e6:.0f} MB/s"
            yield Finding(node.name, "disk", "PASS", text)


def shared_memory(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """NCCL, data loaders and vLLM's processes share memory through /dev/shm."""
    for node, free, finding in part_of(nodes, "shared_memory", "shared memory"):
        if finding:
            yield finding
        elif free < wanted.shared_memory * GIB:
            text = f"/dev/shm has {free / GIB:.2f} GiB free, {wanted.shared_memory:g} wanted"
            fix = "remove left-overs from /dev/shm, or give the container a larger one (--shm-size, --ipc=host)"
            yield Finding(node.name, "shared memory", "FAIL", text, fix)
        else:
            yield Finding(node.name, "shared memory", "PASS", f"{free / GIB:.1f} GiB free")


def host_memory(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """Optimizer states pass through it when a checkpoint is saved; too little, and the kernel kills a rank."""
    for node, free, finding in part_of(nodes, "host_memory", "host memory"):
        trains = wanted.trainer_nodes is None or node.name in wanted.trainer_nodes
        text = f"{(free or 0) / GIB:.0f} GiB available"
        if finding:
            yield finding
        elif trains and free < wanted.host_memory * GIB:
            fix = (
                "ask Slurm for all of it (--mem=0), end what else runs there, or spread the actor over more nodes"
            )
            wants = f"{text}, saving a checkpoint takes {wanted.host_memory:.0f}"
            yield Finding(node.name, "host memory", "FAIL", wants, fix)
        else:
            yield Finding(node.name, "host memory", "PASS", text)


def limits(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """ulimits; locked memory matters where InfiniBand is."""
    for node, facts, finding in part_of(nodes, "limits", "ulimits"):
        if finding:
            yield finding
            continue
        least = {"nofile": 16384, "nproc": 4096} | ({"memlock": 64 * GIB} if node.infiniband else {})
        low = {name: getattr(facts, name) for name, value in least.items() if 0 <= getattr(facts, name) < value}
        if low:
            text = ", ".join(f"{name} {value}, {least[name]} wanted" for name, value in low.items())
            fix = "raise them in /etc/security/limits.d, and Slurm's with PropagateResourceLimits"
            fatal = low.get("nofile", 4096) < 4096 or "memlock" in low
            yield Finding(node.name, "ulimits", "FAIL" if fatal else "WARN", text, fix)
        else:
            yield Finding(node.name, "ulimits", "PASS", f"nofile {facts.nofile}, memlock {facts.memlock}")


def ports(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """Nothing may listen where the run will."""
    for node, busy, finding in part_of(nodes, "busy_ports", "ports"):
        if finding:
            yield finding
        elif busy:
            text = f"in use: {', '.join(map(str, busy))}"
            fix = "find who listens (ss -ltnp), left-overs of a run most likely; or choose other ports"
            yield Finding(node.name, "ports", "FAIL", text, fix)
        else:
            yield Finding(node.name, "ports", "PASS", "free")


def infiniband(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """Ports up where the other nodes' are, and as fast."""
    answered = [node for node in nodes if node.infiniband is not None]
    known = {node.name: {port.name: port for port in node.infiniband or []} for node in answered}
    if not any(known.values()):
        for node, _, finding in part_of(nodes, "infiniband", "InfiniBand"):
            yield finding or Finding(node.name, "InfiniBand", "SKIP", "no devices on any node")
        return
    names = {name for of in known.values() for name in of}
    up = {name: sum(of[name].state == "ACTIVE" for of in known.values() if name in of) for name in names}
    rates = {
        name: median([of[name].rate or 0 for of in known.values() if name in of and of[name].state == "ACTIVE"])
        for name in names
        if up[name]
    }
    for node, _, finding in part_of(nodes, "infiniband", "InfiniBand"):
        if finding:
            yield finding
            continue
        own = known[node.name]
        used = [name for name in sorted(names) if up[name]]
        down = [f"{name} {own[name].state if name in own else 'absent'}" for name in used if _is_down(own, name)]
        slow = [
            f"{name} at {own[name].rate:g} Gb/s, others {rates[name]:g}"
            for name in used
            if not _is_down(own, name) and (own[name].rate or 0) < rates[name]
        ]
        if down or slow:
            fix = "check cable and switch port (ibstat, ibdiagnet), and drain the node until then"
            yield Finding(node.name, "InfiniBand", "FAIL", "; ".join(down + slow), fix)
        elif not used:
            yield Finding(node.name, "InfiniBand", "WARN", "no port is active on any node", "check ibstat")
        else:
            yield Finding(node.name, "InfiniBand", "PASS", f"{len(used)} ports at {max(rates.values()):g} Gb/s")


def _is_down(own: dict[str, Any], name: str) -> bool:
    return name not in own or own[name].state != "ACTIVE"


def versions(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """Driver, CUDA, NCCL, torch and Python equal everywhere; the driver new enough for torch's CUDA.

    What a node could not tell is compared with nothing: the check that it belongs to says so, of that node alone.
    """
    seen = {}
    for node, facts, finding in part_of(nodes, "versions", "versions"):
        if finding:
            yield finding
            continue
        gpus = node.gpus
        seen[node.name] = {
            "driver": gpus.driver if gpus else None,
            "CUDA of the driver": gpus.cuda_driver if gpus else None,
            "CUDA": facts.cuda,
            "NCCL": facts.nccl,
            "torch": facts.torch,
            "Python": facts.python,
        }
    odd: dict[str, list[str]] = {name: [] for name in seen}
    for what in next(iter(seen.values()), {}):
        known = {name: of[what] for name, of in seen.items() if of[what] is not None}
        for name, text in unlike(known).items():
            odd[name].append(f"{what} {text}")
    for name, of in seen.items():
        driver, cuda = of["CUDA of the driver"], of["CUDA"]
        if driver and cuda and int(driver.split(".")[0]) < int(cuda.split(".")[0]):
            odd[name].append(f"torch is built for CUDA {cuda}, the driver knows {driver}")
        if odd[name]:
            fix = "run the same image and environment everywhere; bring that node's driver to the others' version"
            yield Finding(name, "versions", "FAIL", "; ".join(odd[name]), fix)
        else:
            text = ", ".join(f"{what} {value}" for what, value in of.items() if value)
            yield Finding(name, "versions", "PASS", text)


def packages(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """As pinned, and equal everywhere. A local part of a version (+cpu, +cu130) is not compared with a pin."""
    known = {node.name: node.versions.packages for node in nodes if node.versions}
    names = sorted({name for of in known.values() for name in of})
    odd: dict[str, list[str]] = {name: [] for name in known}
    for package in names:
        pin = wanted.pins.get(package)
        for node_name, text in unlike({n: of.get(package) or "missing" for n, of in known.items()}).items():
            if pin is None:
                odd[node_name].append(f"{package} {text}")
        for node_name, of in known.items():
            have = of.get(package)
            if pin is not None and (have is None or have.partition("+")[0] != pin.partition("+")[0]):
                odd[node_name].append(f"{package} {have or 'missing'}, pinned to {pin}")
    for node, _, finding in part_of(nodes, "versions", "packages"):
        if finding:
            yield finding
        elif odd[node.name]:
            fix = "pip install -r the requirements file on that node, or use the same image everywhere"
            yield Finding(node.name, "packages", "FAIL", "; ".join(odd[node.name]), fix)
        else:
            yield Finding(
                node.name, "packages", "PASS", f"{len(names)} as {'pinned' if wanted.pins else 'elsewhere'}"
            )


def model(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """Whole, and the same on all nodes."""
    yield from _folders(nodes, "model", "model", lambda node: [node.model] if node.model else [])


def data(nodes: Sequence[Node], wanted: Requirements) -> Iterator[Finding]:
    """There, and the same on all nodes."""
    yield from _folders(nodes, "data", "data", lambda node: node.data or [])


def _folders(
    nodes: Sequence[Node], part: str, check: str, of: Callable[[Node], list[Folder]]
) -> Iterator[Finding]:
    digests = {n.name: tuple(folder.digest for folder in of(n)) for n in nodes if of(n)}
    odd = unlike({name: "/".join((digest or "nothing")[:8] for digest in of) for name, of in digests.items()})
    for node, _, finding in part_of(nodes, part, check):
        faults = [f"{folder.path}: {'; '.join(folder.faults)}" for folder in of(node) if folder.faults]
        if finding:
            yield finding
        elif faults:
            fix = "copy or download it again there; a shared path must be mounted on every node"
            yield Finding(node.name, check, "FAIL", "; ".join(faults), fix)
        elif node.name in odd:
            text = f"not the same files as on other nodes (digest {odd[node.name]})"
            yield Finding(node.name, check, "FAIL", text, "copy it again, or put it on a shared path")
        else:
            size = sum(folder.size for folder in of(node))
            yield Finding(node.name, check, "PASS", f"{size / GIB:.2f} GiB")


HOST_CHECKS: tuple[Check, ...] = (
    versions,
    packages,
    infiniband,
    clock,
    disk,
    shared_memory,
    host_memory,
    limits,
    ports,
    model,
    data,
)
