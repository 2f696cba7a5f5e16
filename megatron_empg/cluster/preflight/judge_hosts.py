"""What the facts of nodes mean, but for their GPUs'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from megatron_empg.cluster.preflight.facts import (
    ClockFacts,
    DiskFacts,
    FolderFacts,
    LimitFacts,
    NodeFacts,
    PortFacts,
    VersionFacts,
)
from megatron_empg.cluster.preflight.judge import (
    GIB,
    Check,
    CheckFinding,
    CheckVerdict,
    Requirements,
    by_node,
    unlike,
)


def clock(nodes: Sequence[NodeFacts], wanted: Requirements) -> Iterator[CheckFinding]:
    """Each node's clock is compared with the median of all nodes."""
    offsets = [node.clock.offset for node in nodes if node.clock]

    @by_node("clock", part="clock")
    def of_node(node: NodeFacts, facts: ClockFacts, wanted: Requirements) -> CheckVerdict:
        skew = facts.offset - median(offsets)
        text = f"{skew:+.3f} s from the nodes' median (known to {facts.uncertain:.3f} s)"
        if abs(skew) > wanted.clock_skew + facts.uncertain:
            return CheckVerdict("FAIL", text, "synchronise it: chronyc makestep, or systemctl restart chronyd")
        if len(offsets) == 1:
            return CheckVerdict("SKIP", "one node, nothing to compare with")
        return CheckVerdict("PASS", text)

    return of_node(nodes, wanted)


@by_node("disk", part="disk")
def disk(node: NodeFacts, facts: DiskFacts, wanted: Requirements) -> CheckVerdict:
    """The run folder: writable, room, speed."""
    if facts.error:
        fix = "choose another run.folder, or make it writable for this user on that node"
        return CheckVerdict("FAIL", facts.error, fix)
    free, speed = facts.free or 0, facts.write_speed or 0.0
    if free < wanted.disk * GIB:
        text = f"{facts.folder}: {free / GIB:.2f} GiB free, {wanted.disk:g} wanted"
        return CheckVerdict("FAIL", text, "free space, or choose another run.folder")
    if speed < wanted.write_speed * 1e6:
        text = f"{facts.folder}: writes {speed / 1e6:.0f} MB/s, {wanted.write_speed:g} wanted"
        return CheckVerdict("WARN", text, "checkpoints will be slow; use a faster file system")
    return CheckVerdict("PASS", f"{free / GIB:.0f} GiB free, writes {speed / 1e6:.0f} MB/s")


@by_node("shared memory", part="shared_memory")
def shared_memory(node: NodeFacts, free: int, wanted: Requirements) -> CheckVerdict:
    """NCCL, data loaders and vLLM's processes share memory through /dev/shm."""
    if free < wanted.shared_memory * GIB:
        text = f"/dev/shm has {free / GIB:.2f} GiB free, {wanted.shared_memory:g} wanted"
        fix = "remove left-overs from /dev/shm, or give the container a larger one (--shm-size, --ipc=host)"
        return CheckVerdict("FAIL", text, fix)
    return CheckVerdict("PASS", f"{free / GIB:.1f} GiB free")


@by_node("host memory", part="host_memory")
def host_memory(node: NodeFacts, free: int, wanted: Requirements) -> CheckVerdict:
    """Optimizer states pass through it when a checkpoint is saved; too little, and the kernel kills a rank."""
    trains = wanted.trainer_nodes is None or node.name in wanted.trainer_nodes
    text = f"{free / GIB:.0f} GiB available"
    if trains and free < wanted.host_memory * GIB:
        fix = "ask Slurm for all of it (--mem=0), end what else runs there, or spread the actor over more nodes"
        return CheckVerdict("FAIL", f"{text}, saving a checkpoint takes {wanted.host_memory:.0f}", fix)
    return CheckVerdict("PASS", text)


@by_node("ulimits", part="limits")
def limits(node: NodeFacts, facts: LimitFacts, wanted: Requirements) -> CheckVerdict:
    """ulimits; locked memory matters where InfiniBand is."""
    least = {"nofile": 16384, "nproc": 4096}
    if node.infiniband:
        least["memlock"] = 64 * GIB
    low = {}
    for name, value in least.items():
        have = getattr(facts, name)
        if 0 <= have < value:
            low[name] = have
    if not low:
        return CheckVerdict("PASS", f"nofile {facts.nofile}, memlock {facts.memlock}")
    text = ", ".join(f"{name} {value}, {least[name]} wanted" for name, value in low.items())
    fatal = low.get("nofile", 4096) < 4096 or "memlock" in low
    fix = "raise them in /etc/security/limits.d, and Slurm's with PropagateResourceLimits"
    return CheckVerdict("FAIL" if fatal else "WARN", text, fix)


@by_node("ports", part="busy_ports")
def ports(node: NodeFacts, busy: list[int], wanted: Requirements) -> CheckVerdict:
    """Nothing may listen where the run will."""
    if busy:
        fix = "find who listens (ss -ltnp), left-overs of a run most likely; or choose other ports"
        return CheckVerdict("FAIL", f"in use: {', '.join(map(str, busy))}", fix)
    return CheckVerdict("PASS", "free")


def infiniband(nodes: Sequence[NodeFacts], wanted: Requirements) -> Iterator[CheckFinding]:
    """Ports up where the other nodes' are, and as fast."""
    known = [_by_name(node.infiniband or []) for node in nodes]
    usual = _usual_rates(known)

    @by_node("InfiniBand", part="infiniband")
    def of_node(node: NodeFacts, own_ports: list[PortFacts], wanted: Requirements) -> CheckVerdict:
        if not any(known):
            return CheckVerdict("SKIP", "no devices on any node")
        if not usual:
            return CheckVerdict("WARN", "no port is active on any node", "check ibstat")
        faults = _port_faults(_by_name(own_ports), usual)
        if faults:
            fix = "check cable and switch port (ibstat, ibdiagnet), and drain the node until then"
            return CheckVerdict("FAIL", "; ".join(faults), fix)
        return CheckVerdict("PASS", f"{len(usual)} ports at {max(usual.values()):g} Gb/s")

    return of_node(nodes, wanted)


def _by_name(ports_of_node: Sequence[PortFacts]) -> dict[str, PortFacts]:
    return {port.name: port for port in ports_of_node}


def _usual_rates(known: Sequence[Mapping[str, PortFacts]]) -> dict[str, float]:
    """Gb/s of each port that is active on any node: the median of those where it is."""
    rates: dict[str, list[float]] = {}
    for ports_of_node in known:
        for name, port in ports_of_node.items():
            if port.state == "ACTIVE":
                rates.setdefault(name, []).append(port.rate or 0)
    return {name: median(rates[name]) for name in sorted(rates)}


def _port_faults(own: Mapping[str, PortFacts], usual: Mapping[str, float]) -> list[str]:
    """A node's ports that are down, then those that are slower than usual."""
    down, slow = [], []
    for name, usual_rate in usual.items():
        port = own.get(name)
        if port is None or port.state != "ACTIVE":
            down.append(f"{name} {port.state if port else 'absent'}")
            continue
        rate = port.rate or 0
        if rate < usual_rate:
            slow.append(f"{name} at {rate:g} Gb/s, others {usual_rate:g}")
    return down + slow


def versions(nodes: Sequence[NodeFacts], wanted: Requirements) -> Iterator[CheckFinding]:
    """Driver, CUDA, NCCL, torch and Python equal everywhere; the driver new enough for torch's CUDA.

    What a node could not tell is compared with nothing: the check that it belongs to says so, of that node alone.
    """
    seen = {node.name: _versions_of(node, node.versions) for node in nodes if node.versions}
    odd: dict[str, list[str]] = {name: [] for name in seen}
    for what in next(iter(seen.values()), {}):
        known = {name: of[what] for name, of in seen.items() if of[what] is not None}
        for name, text in unlike(known).items():
            odd[name].append(f"{what} {text}")

    @by_node("versions", part="versions")
    def of_node(node: NodeFacts, facts: VersionFacts, wanted: Requirements) -> CheckVerdict:
        own = seen[node.name]
        faults = list(odd[node.name])
        driver, cuda = own["CUDA of the driver"], own["CUDA"]
        if driver and cuda and int(driver.split(".")[0]) < int(cuda.split(".")[0]):
            faults.append(f"torch is built for CUDA {cuda}, the driver knows {driver}")
        if faults:
            fix = "run the same image and environment everywhere; bring that node's driver to the others' version"
            return CheckVerdict("FAIL", "; ".join(faults), fix)
        return CheckVerdict("PASS", ", ".join(f"{what} {value}" for what, value in own.items() if value))

    return of_node(nodes, wanted)


def _versions_of(node: NodeFacts, facts: VersionFacts) -> dict[str, str | None]:
    driver = cuda_driver = None
    if node.gpus:
        driver, cuda_driver = node.gpus.driver, node.gpus.cuda_driver
    return {
        "driver": driver,
        "CUDA of the driver": cuda_driver,
        "CUDA": facts.cuda,
        "NCCL": facts.nccl,
        "torch": facts.torch,
        "Python": facts.python,
    }


def packages(nodes: Sequence[NodeFacts], wanted: Requirements) -> Iterator[CheckFinding]:
    """Packages are as pinned, and equal on all nodes. A version's local part (+cpu) is not compared with a pin."""
    known = {node.name: node.versions.packages for node in nodes if node.versions}
    names = sorted({name for of in known.values() for name in of})
    odd: dict[str, list[str]] = {name: [] for name in known}
    for package in names:
        have = {name: of.get(package) for name, of in known.items()}
        for name, fault in _package_faults(have, wanted.pins.get(package)).items():
            odd[name].append(f"{package} {fault}")

    @by_node("packages", part="versions")
    def of_node(node: NodeFacts, facts: VersionFacts, wanted: Requirements) -> CheckVerdict:
        if odd[node.name]:
            fix = "pip install -r the requirements file on that node, or use the same image everywhere"
            return CheckVerdict("FAIL", "; ".join(odd[node.name]), fix)
        source = "pinned" if wanted.pins else "elsewhere"
        return CheckVerdict("PASS", f"{len(names)} as {source}")

    return of_node(nodes, wanted)


def _package_faults(have: Mapping[str, str | None], pin: str | None) -> dict[str, str]:
    """{node: what is wrong with its version of one package}."""
    if pin is None:
        return unlike({name: version or "missing" for name, version in have.items()})
    faults = {}
    for name, version in have.items():
        if version is None or version.partition("+")[0] != pin.partition("+")[0]:
            faults[name] = f"{version or 'missing'}, pinned to {pin}"
    return faults


def model(nodes: Sequence[NodeFacts], wanted: Requirements) -> Iterator[CheckFinding]:
    """Whole, and the same on all nodes."""
    return _folders("model", _model_folder)(nodes, wanted)


def _model_folder(node: NodeFacts) -> list[FolderFacts]:
    if not node.model:
        return []
    return [node.model]


def data(nodes: Sequence[NodeFacts], wanted: Requirements) -> Iterator[CheckFinding]:
    """There, and the same on all nodes."""
    return _folders("data", lambda node: node.data or [])(nodes, wanted)


def _folders(check: str, folders_of: Callable[[NodeFacts], list[FolderFacts]]) -> Check:
    """A check of folders that every node must see alike; it has the name of their part."""

    def run(nodes: Sequence[NodeFacts], wanted: Requirements) -> Iterator[CheckFinding]:
        digests = {}
        for node in nodes:
            folders = folders_of(node)
            if folders:
                digests[node.name] = "/".join((folder.digest or "nothing")[:8] for folder in folders)
        odd = unlike(digests)

        @by_node(check, part=check)
        def of_node(node: NodeFacts, facts: Any, wanted: Requirements) -> CheckVerdict:
            folders = folders_of(node)
            faults = [f"{folder.path}: {'; '.join(folder.faults)}" for folder in folders if folder.faults]
            if faults:
                fix = "copy or download it again there; a shared path must be mounted on every node"
                return CheckVerdict("FAIL", "; ".join(faults), fix)
            if node.name in odd:
                text = f"not the same files as on other nodes (digest {odd[node.name]})"
                return CheckVerdict("FAIL", text, "copy it again, or put it on a shared path")
            size = sum(folder.size for folder in folders)
            return CheckVerdict("PASS", f"{size / GIB:.2f} GiB")

        return of_node(nodes, wanted)

    return run


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
