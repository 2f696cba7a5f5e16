"""Every collective, type and size in every group of the layout, byte for byte; also several groups at once."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from megatron_empg.cluster.nccl_suite import patterns
from megatron_empg.cluster.nccl_suite.collectives import (
    COLLECTIVES,
    POINT_TO_POINT,
    CollectiveCase,
    CollectiveExchange,
    GroupMembers,
    supported,
)
from megatron_empg.cluster.nccl_suite.faults import SuiteFault, WrongBytes, blame, wrong_bytes
from megatron_empg.cluster.nccl_suite.session import SuiteSession
from megatron_empg.common.dtypes import name_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)
_SIZES = (8, 4096, 2**20, 16 * 2**20, 64 * 2**20, 256 * 2**20, 2**30)
_ALL_DTYPES_TO = 2**20


def sizes_to(largest: int) -> list[int]:
    """8 B to ``largest``, which is among them."""
    return [size for size in _SIZES if size < largest] + [largest]


def check_all(session: SuiteSession, largest: int) -> tuple[dict[str, Any], list[SuiteFault]]:
    """(what was checked, faults); both complete on rank 0 only."""
    wrong: list[WrongBytes] = []
    checked: dict[str, int] = {}
    for kind, members in session.groups.items():
        checked[kind] = 0
        for number, size in enumerate(sizes_to(largest)):
            # Above 1 MiB one type a size, in turn: bytes move alike, and filling and checking take the time.
            dtypes: Sequence[torch.dtype] = DTYPES
            if size > _ALL_DTYPES_TO:
                dtypes = (DTYPES[number % len(DTYPES)],)
            for dtype in dtypes:
                for name in COLLECTIVES:
                    if supported(name, dtype, members.size):
                        wrong += check(session, name, session.case(members, dtype, size))
                        checked[kind] += 1
        wrong += _check_barrier(session, members)
    concurrent = check_concurrent(session, min(largest, 2**20))
    wrong += concurrent
    gathered = wrong_bytes(session.exchange("correctness", _json(wrong)))
    summary = {
        "collectives": [*COLLECTIVES, "barrier"],
        "dtypes": list(map(_name, DTYPES)),
        "sizes": sizes_to(largest),
        "cases": checked,
        "concurrent groups": [kind for kind in session.groups if kind != "world"],
        "wrong": _json(gathered[:100]),
    }
    return summary, blame(gathered)


def check(session: SuiteSession, name: str, case: CollectiveCase) -> list[WrongBytes]:
    """Run one collective in this rank's group and compare every byte."""
    exchange = COLLECTIVES[name](case)
    label = f"{name} of {exchange.size} bytes of {_name(case.dtype)} in group {case.members}"
    with session.step(label, case.members.ranks):
        session.run(exchange)
    return compare(name, case, exchange)


def compare(name: str, case: CollectiveCase, exchange: CollectiveExchange) -> list[WrongBytes]:
    """The first wrong element of each part received."""
    found = []
    for part in exchange.expected:
        mismatch = patterns.first_mismatch(part.buffer, part.table, part.tolerance)
        if mismatch:
            source = None
            if part.source is not None:
                source = case.members.ranks[part.source]
            found.append(
                WrongBytes(
                    group=str(case.members),
                    collective=name,
                    dtype=_name(case.dtype),
                    size=exchange.size,
                    rank=case.members.ranks[case.members.me],
                    source=source,
                    **asdict(mismatch),
                )
            )
    return found


def check_concurrent(session: SuiteSession, size: int) -> list[WrongBytes]:
    """All of a rank's groups at once: every collective is started in each group before one is waited for."""
    groups = [members for kind, members in session.groups.items() if kind != "world"]
    found = []
    for name in COLLECTIVES:
        if name in POINT_TO_POINT or not groups:
            continue
        cases = [session.case(members, torch.float32, size) for members in groups]
        exchanges = [COLLECTIVES[name](case) for case in cases]
        ranks = sorted({rank for members in groups for rank in members.ranks})
        with session.step(f"{name} in {len(groups)} groups at once", ranks):
            started: list[Any] = []
            for exchange in exchanges:
                started += exchange.start()
            for work in started:
                work.wait()
            session.synchronize()
        for case, exchange in zip(cases, exchanges, strict=True):
            found += compare(f"{name}, groups at once", case, exchange)
    return found


def _check_barrier(session: SuiteSession, members: GroupMembers) -> list[WrongBytes]:
    """Nobody leaves a barrier before all have come: a counter in the store tells."""
    import torch.distributed as dist

    case = session.case(members, torch.int64, 8)
    key = f"barrier/{case.seed}/{members.ranks[0]}"
    devices = None
    if case.device.index is not None:
        devices = [case.device.index]
    with session.step(f"barrier in group {members}", members.ranks):
        session.store.add(key, 1)
        dist.barrier(members.group, device_ids=devices)
        came = session.store.add(key, 0)
    if came == members.size:
        return []
    me = members.ranks[members.me]
    return [WrongBytes(str(members), "barrier", "arrivals", 0, me, None, 0, str(came), str(members.size))]


def _json(wrong: Sequence[WrongBytes]) -> list[dict[str, Any]]:
    return [asdict(w) for w in wrong]


def _name(dtype: torch.dtype) -> str:
    return name_of(dtype)
