"""The suite from start to verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_empg.actor.config import ActorConfig
from megatron_empg.cluster.nccl_suite.faults import SuiteFault
from megatron_empg.cluster.nccl_suite.session import Backend, PlantedFault, SuiteSession
from megatron_empg.cluster.place import RankPlace

SECTIONS = ("correctness", "late", "bandwidth", "pairs", "transfer")
MAX_BYTES = {"nccl": 2**30, "gloo": 64 * 2**20}
_PAIR_BYTES = {"nccl": 256 * 2**20, "gloo": 4 * 2**20}
# A pair this much slower than the rest is slow; CPUs shared by many ranks scatter more than GPUs do.
_SLOW_BELOW = {"nccl": 0.7, "gloo": 0.35}
NOT_EXERCISED = "multi-rank NCCL not exercised"


@dataclass(frozen=True)
class SuiteOptions:
    """What to run. Sizes in bytes, times in seconds unless said; None is the backend's default."""

    backend: Backend
    layout: ActorConfig = field(default_factory=ActorConfig)
    max_bytes: int | None = None
    sections: tuple[str, ...] = SECTIONS
    trainers: int | None = None
    """Of the M-to-N transfer: the first so many ranks; default half."""
    stress_minutes: float = 0.0
    slow_below: float | None = None
    least_pair: float | None = None
    """GB/s that every pair must reach."""
    step_limit: float = 60.0
    start_limit: float = 600.0
    time_limit: float = 1800.0
    inject: PlantedFault | None = None
    json: Path | None = None
    heat_map: Path | None = None


@dataclass
class SuiteFindings:
    """What rank 0 knows so far; what is not measured is None."""

    world_size: int
    backend: str
    nodes: list[str] = field(default_factory=list)
    verdict: str = ""
    note: str = ""
    faults: list[SuiteFault] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    correctness: dict[str, Any] | None = None
    latency: dict[str, float] | None = None
    late: list[list[float]] | None = None
    bandwidth: list[dict[str, Any]] | None = None
    pairs: list[tuple[int, int, float]] | None = None
    gpus: list[dict[str, float | int]] | None = None
    node_pairs: list[dict[str, str | float]] | None = None
    transfer: list[dict[str, Any]] | None = None
    stress: dict[str, Any] | None = None

    def conclude(self) -> None:
        """Set the verdict. One rank never passes: nothing that this suite is for was exercised."""
        if self.faults:
            self.verdict = "FAIL"
        elif self.world_size == 1:
            self.verdict, self.note = "NOT EXERCISED", f"world size 1: {NOT_EXERCISED}, no bandwidth measured"
        else:
            self.verdict = "PASS"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "faults": [fault.as_json() for fault in self.faults]}


def run_suite(options: SuiteOptions) -> int:
    """Run on this rank; rank 0 prints and writes. Exit code: 0 no fault, 1 faults, 3 cut off by the watch.

    Raises PlaceError and LayoutError for an environment or a layout that cannot be.
    """
    from megatron_empg.cluster.nccl_suite.report import publish

    place = RankPlace.from_environment()
    findings = SuiteFindings(place.world_size, options.backend)

    def cut_off(fault: SuiteFault) -> None:
        """From the watch's thread: report what there is with the fault that ended it."""
        if place.rank == 0:
            findings.faults.insert(0, fault)
            findings.conclude()
            publish(findings, options.json, options.heat_map)

    session = SuiteSession(
        place,
        options.backend,
        layout=options.layout,
        step_limit=options.step_limit,
        start_limit=options.start_limit,
        time_limit=options.time_limit,
        inject=options.inject,
        report=cut_off,
    )
    findings.nodes = session.names
    findings.groups = {kind: members.size for kind, members in session.groups.items()}
    for name, section in _sections(session, findings, options):
        start = time.monotonic()
        section()
        findings.seconds[name] = round(time.monotonic() - start, 2)
    findings.conclude()
    if place.rank == 0:
        publish(findings, options.json, options.heat_map)
    failed = session.agree("the verdict", findings.verdict == "FAIL")
    session.close()
    if not failed:
        return 0
    return 1


def _sections(
    session: SuiteSession, findings: SuiteFindings, options: SuiteOptions
) -> list[tuple[str, Callable[[], None]]]:
    from megatron_empg.cluster.nccl_suite import correctness, pairs, performance, transfer
    from megatron_empg.cluster.nccl_suite.stress import stress

    largest = options.max_bytes or MAX_BYTES[options.backend]
    world = session.place.world_size

    def check() -> None:
        findings.correctness, faults = correctness.check_all(session, largest)
        findings.faults += faults

    def late() -> None:
        findings.latency = performance.measure_latency(session, session.groups["world"])
        findings.late = performance.measure_lateness(session)
        floor = performance.LATE[options.backend]
        findings.faults += performance.judge_lateness(findings.late, session.names, floor)

    def bandwidth() -> None:
        findings.bandwidth = performance.measure_groups(session, largest)

    def by_pair() -> None:
        below = options.slow_below or _SLOW_BELOW[options.backend]
        matrix, slow = pairs.find_slow_pairs(session, _PAIR_BYTES[options.backend], below, options.least_pair)
        findings.pairs = [(a, b, value) for (a, b), value in sorted(matrix.items())]
        findings.gpus = pairs.by_gpu(matrix, world)
        findings.node_pairs = pairs.by_nodes(matrix, session.nodes)
        findings.faults += slow

    def m_to_n() -> None:
        trainers = options.trainers or (world + 1) // 2
        findings.transfer, faults = transfer.check_transfer(session, largest, trainers)
        findings.faults += faults

    def under_stress() -> None:
        findings.stress, faults = stress(session, options.stress_minutes, min(largest, 16 * 2**20))
        findings.faults += faults

    every = {"correctness": check, "late": late, "bandwidth": bandwidth, "pairs": by_pair, "transfer": m_to_n}
    chosen = [(name, every[name]) for name in SECTIONS if name in options.sections]
    if options.stress_minutes:
        chosen.append(("stress", under_stress))
    if world == 1:
        return [(name, section) for name, section in chosen if name in ("correctness", "stress")]
    return chosen
