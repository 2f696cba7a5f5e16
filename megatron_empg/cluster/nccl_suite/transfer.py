"""Weights from M trainer ranks to N engine ranks: a broadcast to all engines, and shards cut anew."""

import time
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from megatron_empg.cluster.nccl_suite import patterns
from megatron_empg.cluster.nccl_suite.bandwidth import algorithm_bandwidth
from megatron_empg.cluster.nccl_suite.collectives import (
    CollectiveCase,
    CollectiveExchange,
    GroupMembers,
    ReceivedPiece,
    broadcast,
)
from megatron_empg.cluster.nccl_suite.correctness import compare
from megatron_empg.cluster.nccl_suite.faults import SuiteFault, WrongBytes, blame, wrong_bytes
from megatron_empg.cluster.nccl_suite.session import SuiteSession

_TURNS = 3


def overlaps(total: int, trainers: int, engines: int) -> list[tuple[int, int, int, int]]:
    """(trainer, engine, start, stop) of every piece shared by a trainer's and an engine's equal shards."""
    pieces = []
    for trainer in range(trainers):
        for engine in range(engines):
            start = max(total * trainer // trainers, total * engine // engines)
            stop = min(total * (trainer + 1) // trainers, total * (engine + 1) // engines)
            if start < stop:
                pieces.append((trainer, engine, start, stop))
    return pieces


def check_transfer(
    session: SuiteSession, size: int, trainers: int
) -> tuple[list[dict[str, Any]], list[SuiteFault]]:
    """(times, faults), complete on rank 0. The first ``trainers`` ranks hold what the others get."""
    world = session.place.world_size
    first_and_engines = (0, *range(trainers, world))
    with session.step("start of the weight transfer's group", range(world)):
        group = dist.new_group(list(first_and_engines))
    wrong: list[WrongBytes] = []
    seconds: dict[str, list[float]] = {"broadcast": [], "shards": []}
    for _ in range(_TURNS):
        wrong += _broadcast(session, group, first_and_engines, size, seconds["broadcast"])
        wrong += _shards(session, trainers, size, seconds["shards"])
    # A rank that takes no part in a transfer has no times of it.
    medians = {name: median(values) for name, values in seconds.items() if values}
    gathered = session.exchange("transfer", {"wrong": list(map(asdict, wrong)), "seconds": medians})
    rows = []
    for name in seconds:
        slowest = max((part["seconds"].get(name, 0.0) for part in gathered), default=0.0)
        if slowest:
            rows.append(
                {
                    "transfer": name,
                    "trainers": trainers,
                    "engines": world - trainers,
                    "size": size,
                    "seconds": slowest,
                    "algorithm_GB_per_s": algorithm_bandwidth(size, slowest),
                }
            )
    return rows, blame(wrong_bytes(part["wrong"] for part in gathered))


def _broadcast(
    session: SuiteSession, group: Any, ranks: tuple[int, ...], size: int, seconds: list[float]
) -> list[WrongBytes]:
    me = 0
    if session.place.rank in ranks:
        me = ranks.index(session.place.rank)
    case = session.case(GroupMembers("trainer 0 and engines", ranks, group, me), torch.bfloat16, size)
    if session.place.rank not in ranks:
        with session.step("the weight transfer without this rank", ()):
            return []
    case = CollectiveCase(
        case.members, case.dtype, case.size, case.seed // len(ranks) * len(ranks), case.device
    )  # root 0
    return _run(session, "weight broadcast", case, broadcast(case), seconds)


def _shards(session: SuiteSession, trainers: int, size: int, seconds: list[float]) -> list[WrongBytes]:
    """Point to point, each piece straight from the trainer that has it to the engine that wants it."""
    world = session.groups["world"]
    case = session.case(world, torch.bfloat16, size)
    sent, parts, operations = [], [], []
    for trainer, engine, start, stop in overlaps(case.whole(), trainers, world.size - trainers):
        receiver = trainers + engine
        table = patterns.data_table(case.dtype, case.seed, trainer, receiver)
        if world.me == trainer:
            sent.append(case.empty(stop - start))
            patterns.fill(sent[-1], table)
            operations.append(dist.P2POp(dist.isend, sent[-1], receiver))
        elif world.me == receiver:
            parts.append(ReceivedPiece(case.empty(stop - start), table, trainer))
            operations.append(dist.P2POp(dist.irecv, parts[-1].buffer, trainer))

    def exchange_pieces() -> list[Any]:
        if not operations:
            return []
        return dist.batch_isend_irecv(operations)

    exchange = CollectiveExchange(exchange_pieces, sent, parts, size)
    return _run(session, "weight shards", case, exchange, seconds)


def _run(
    session: SuiteSession, name: str, case: CollectiveCase, exchange: CollectiveExchange, seconds: list[float]
) -> list[WrongBytes]:
    with session.step(f"{name} of {exchange.size} bytes", case.members.ranks):
        start = time.perf_counter()
        session.run(exchange)
        seconds.append(time.perf_counter() - start)
    return compare(name, case, exchange)
