"""Times of collectives: bandwidth by size and group, latency, and ranks that come late."""

import time
from statistics import mean, median
from typing import Any

import torch
import torch.distributed as dist

from megatron_empg.cluster.nccl_suite.bandwidth import algorithm_bandwidth, bus_bandwidth
from megatron_empg.cluster.nccl_suite.collectives import (
    COLLECTIVES,
    CollectiveCase,
    CollectiveExchange,
    GroupMembers,
    all_reduce,
)
from megatron_empg.cluster.nccl_suite.faults import SuiteFault
from megatron_empg.cluster.nccl_suite.session import DELAY, SuiteSession
from megatron_empg.cluster.nccl_suite.slow_links import find_late

TIMED = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "send_recv")
# Lateness below this is scheduling, not a fault: GPUs wait for each other in microseconds, shared CPUs do not.
LATE = {"nccl": 0.02, "gloo": 0.15}
_LATENCY_TURNS = 200
_ROUNDS = 7


def sizes_between(smallest: int, largest: int) -> list[int]:
    """Every eighth power of two, and the largest."""
    sizes = []
    while smallest < largest:
        sizes.append(smallest)
        smallest *= 8
    return [*sizes, largest]


def measure_groups(session: SuiteSession, largest: int) -> list[dict[str, Any]]:
    """Rows of bandwidth: all sizes over the world, the largest in every other kind of group (all its groups at
    once, as in training). Complete on rank 0 only."""
    rows = []
    for kind, members in session.groups.items():
        if members.size == 1:
            continue
        sizes = [largest]
        if kind == "world":
            sizes = sizes_between(8, largest)
        for name in TIMED:
            for size in sizes:
                row = _row(session, name, session.case(members, torch.float32, size))
                rows.append(row)
    gathered = session.exchange("times", [row["seconds"] for row in rows])
    for number, row in enumerate(rows):
        # As nccl-tests by default: the mean over ranks. Over concurrent groups that is their mean too.
        if gathered:
            seconds = mean(part[number] for part in gathered)
        else:
            seconds = row["seconds"]
        size, ranks = row["size"], row["ranks"]
        row["seconds"] = seconds
        row["algorithm_GB_per_s"] = algorithm_bandwidth(size, seconds)
        row["bus_GB_per_s"] = bus_bandwidth(row["collective"], size, seconds, ranks)
    return rows


def _row(session: SuiteSession, name: str, case: CollectiveCase) -> dict[str, Any]:
    turns = 5
    if case.size <= 2**20:
        turns = 20
    exchange = COLLECTIVES[name](case)
    seconds = time_exchange(session, name, case, exchange, turns, warm_up=2)
    members = case.members
    return {
        "group": members.kind,
        "ranks": members.size,
        "collective": name,
        "size": exchange.size,
        "seconds": median(seconds),
    }


def time_exchange(
    session: SuiteSession,
    name: str,
    case: CollectiveCase,
    exchange: CollectiveExchange,
    turns: int,
    warm_up: int = 1,
) -> list[float]:
    """Seconds of each turn on this rank, after ``warm_up`` untimed ones."""
    seconds = []
    with session.step(f"timing of {name} of {exchange.size} bytes in group {case.members}", case.members.ranks):
        for turn in range(warm_up + turns):
            start = time.perf_counter()
            exchange.run()
            session.synchronize()
            if turn >= warm_up:
                seconds.append(time.perf_counter() - start)
    return seconds


def measure_latency(session: SuiteSession, members: GroupMembers) -> dict[str, float]:
    """Microseconds of an 8-byte all_reduce on this rank."""
    case = session.case(members, torch.float32, 8)
    seconds = time_exchange(session, "all_reduce", case, all_reduce(case), _LATENCY_TURNS, warm_up=20)
    ordered = sorted(seconds)
    return {"median_us": median(ordered) * 1e6, "p99_us": ordered[int(len(ordered) * 0.99)] * 1e6}


def measure_lateness(session: SuiteSession) -> list[list[float]]:
    """Seconds by which each rank comes after the first one to a collective, by rank and round; rank 0 only.

    All start together, do the same piece of work, and meet in a small all_reduce. No two clocks are compared: who
    comes last waits least.
    """
    everyone = range(session.place.world_size)
    small = torch.zeros(2, device=session.device)
    work = torch.randn(256, 256, device=session.device)
    waited = []
    for _ in range(_ROUNDS):
        with session.step("a round of the search for late ranks", everyone):
            dist.all_reduce(small)
            session.synchronize()
            for _ in range(4):
                work = torch.tanh(work @ work)
            session.synchronize()
            if session.inject and session.inject.kind == "delay":
                time.sleep(DELAY)
            start = time.perf_counter()
            dist.all_reduce(small)
            session.synchronize()
            waited.append(time.perf_counter() - start)
    gathered = session.exchange("lateness", waited)
    late: list[list[float]] = [[] for _ in gathered]
    for of_round in zip(*gathered, strict=True):
        longest = max(of_round)
        for own, waited_by_rank in zip(late, of_round, strict=True):
            own.append(longest - waited_by_rank)
    return late


def judge_lateness(late: list[list[float]], names: list[str], floor: float) -> list[SuiteFault]:
    """Name the late ranks."""
    faults = []
    for rank in find_late(late, floor):
        what = f"rank {rank} ({names[rank]}) comes {median(late[rank]):.3f} s late to collectives"
        faults.append(SuiteFault("late", (rank,), what))
    return faults
