"""Bandwidth between pairs of GPUs: inside each node all pairs, between nodes those with the same local rank.

Pairs are played as a round-robin tournament. Rounds of disjoint pairs run at once over NCCL; over gloo, where the
ranks may share one machine, one pair at a time.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from megatron_empg.cluster.nccl_suite.bandwidth import algorithm_bandwidth
from megatron_empg.cluster.nccl_suite.faults import Fault
from megatron_empg.cluster.nccl_suite.session import Session
from megatron_empg.cluster.nccl_suite.slow_links import Matrix, find_slow

Pair = tuple[int, int]
_TURNS = 5


def tournament(members: Sequence[int]) -> list[list[Pair]]:
    """Rounds of disjoint pairs in which everybody meets everybody once (circle method)."""
    ring: list[int | None] = [*members, *([None] if len(members) % 2 else [])]
    rounds = []
    for _ in range(len(ring) - 1):
        half = len(ring) // 2
        pairs = zip(ring[:half], reversed(ring[half:]), strict=True)
        rounds.append([(a, b) for a, b in pairs if a is not None and b is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return [pairs for pairs in rounds if pairs]


def schedule(nodes: Sequence[tuple[str, int]], at_once: bool) -> list[list[Pair]]:
    """Rounds of rank pairs, given (node, local rank) of every rank."""
    by_node, by_rail = defaultdict(list), defaultdict(list)
    for rank, (node, local) in enumerate(nodes):
        by_node[node].append(rank)
        by_rail[local].append(rank)
    rounds: list[list[Pair]] = []
    inside = [tournament(ranks) for ranks in by_node.values()]
    for number in range(max((len(played) for played in inside), default=0)):
        rounds.append([pair for played in inside if number < len(played) for pair in played[number]])
    for ranks in by_rail.values():  # one rail at a time: rails may share a network card
        rounds += tournament(ranks)
    if at_once:
        return rounds
    return [[pair] for pairs in rounds for pair in pairs]


def find_slow_pairs(session: Session, size: int, below: float, least: float | None) -> tuple[Matrix, list[Fault]]:
    """(GB/s from rank to rank, slow nodes and links), complete on rank 0 only.

    Pairs that look slow are measured twice more and keep their best: a busy moment is not a bad cable.
    """
    rounds = schedule(session.nodes, session.backend == "nccl")
    matrix = measure_pairs(session, rounds, size)
    for _ in range(2):
        faults = judge_pairs(matrix, session.nodes, below, least)
        suspects = {rank for fault in faults for rank in fault.ranks}
        again = [[pair for pair in pairs if suspects & set(pair)] for pairs in rounds]
        rounds = session.agree("the pairs to measure again", [pairs for pairs in again if pairs])
        for pair, value in measure_pairs(session, rounds, size).items():
            matrix[pair] = max(value, matrix[pair])
    return matrix, judge_pairs(matrix, session.nodes, below, least)


def measure_pairs(session: Session, rounds: Sequence[Sequence[Sequence[int]]], size: int) -> Matrix:
    """GB/s from rank to rank, the best of a few turns; complete on rank 0 only."""
    me = session.place.rank
    mine: list[tuple[int, int, float]] = []
    given = torch.zeros(size, dtype=torch.uint8, device=session.device)
    acknowledge = torch.zeros(1, dtype=torch.uint8, device=session.device)
    for pairs in rounds:
        one, other = next((pair for pair in pairs if me in pair), (-1, -1))
        played = me in (one, other)
        with session.step(f"bandwidth between rank {one} and rank {other}", (one, other) if played else ()):
            for sender, receiver in ((one, other), (other, one)) if played else ():
                seconds = [_one_way(session, given, acknowledge, sender, receiver) for _ in range(_TURNS)]
                if me == sender:
                    mine.append((sender, receiver, algorithm_bandwidth(size, min(seconds))))
        if session.backend == "gloo":
            with session.step("end of a pair", range(session.place.world_size)):
                dist.barrier()
    parts = session.exchange("pairs", mine)
    return {(a, b): value for part in parts for a, b, value in part}


def _one_way(session: Session, given: Any, acknowledge: Any, sender: int, receiver: int) -> float:
    """Seconds from sending to the receiver's word that all is there."""
    peer = receiver if session.place.rank == sender else sender
    there, back = (dist.isend, dist.irecv) if session.place.rank == sender else (dist.irecv, dist.isend)
    start = time.perf_counter()
    for operation, buffer in ((there, given), (back, acknowledge)):
        for work in dist.batch_isend_irecv([dist.P2POp(operation, buffer, peer)]):
            work.wait()
    session.synchronize()
    return time.perf_counter() - start


def judge_pairs(
    bandwidth: Matrix, nodes: Sequence[tuple[str, int]], below: float, least: float | None = None
) -> list[Fault]:
    """Slow nodes, GPUs and links of a rank-to-rank matrix; ``least`` is a floor in GB/s for every pair."""
    names = [f"rank {rank} ({node}, GPU {local})" for rank, (node, local) in enumerate(nodes)]
    faults = []
    for found in _slow_between_nodes(bandwidth, nodes, below) + _slow_inside(bandwidth, nodes, names, below):
        faults.append(Fault("slow", found[0], found[1]))
    for (a, b), value in bandwidth.items():
        if least is not None and value < least:
            what = f"link {names[a]} -> {names[b]}: {value:.3g} GB/s, below the {least:g} asked for"
            faults.append(Fault("slow", (a, b), what))
    return faults


def _slow_between_nodes(
    bandwidth: Matrix, nodes: Sequence[tuple[str, int]], below: float
) -> list[tuple[tuple[int, ...], str]]:
    """Rail by rail; a node whose every rail is slow is named once."""
    order = sorted({node for node, _ in nodes})
    rails = sorted({local for _, local in nodes})
    slow: dict[tuple[tuple[int, ...], str], list[tuple[int, str]]] = defaultdict(list)
    for rail in rails:
        matrix = {
            (order.index(nodes[a][0]), order.index(nodes[b][0])): value
            for (a, b), value in bandwidth.items()
            if nodes[a][0] != nodes[b][0] and nodes[a][1] == nodes[b][1] == rail
        }
        for found in find_slow(matrix, below):
            sentence = found.sentence([f"node {name}" for name in order])
            slow[found.members, found.direction].append((rail, sentence))
    answers = []
    for (members, _), found_rails in slow.items():
        guilty = [rail for rail, _ in found_rails]
        on = "" if guilty == rails else f", GPU {', '.join(map(str, guilty))} only"
        ranks = [r for r, (node, local) in enumerate(nodes) if order.index(node) in members and local in guilty]
        answers.append((tuple(ranks), found_rails[0][1] + on))
    return answers


def _slow_inside(
    bandwidth: Matrix, nodes: Sequence[tuple[str, int]], names: Sequence[str], below: float
) -> list[tuple[tuple[int, ...], str]]:
    """GPUs and links inside a node, and nodes whose GPUs are slow altogether."""
    inside: dict[str, Matrix] = defaultdict(dict)
    for (a, b), value in bandwidth.items():
        if nodes[a][0] == nodes[b][0]:
            inside[nodes[a][0]][a, b] = value
    answers = [
        (found.members, found.sentence(names)) for matrix in inside.values() for found in find_slow(matrix, below)
    ]
    usual = {node: median(matrix.values()) for node, matrix in inside.items()}
    for node, value in usual.items():
        others = [other for name, other in usual.items() if name != node]
        if len(others) > 1 and value < below * median(others):
            ranks = tuple(rank for rank, (name, _) in enumerate(nodes) if name == node)
            answers.append(
                (ranks, f"node {node}: its GPUs exchange {value:.3g} GB/s, others' {median(others):.3g}")
            )
    return answers


def by_gpu(bandwidth: Matrix, world_size: int) -> list[dict[str, float | int]]:
    """Each rank's median sending and receiving bandwidth."""
    rows: list[dict[str, float | int]] = []
    for rank in range(world_size):
        sends = [value for (a, _), value in bandwidth.items() if a == rank]
        receives = [value for (_, b), value in bandwidth.items() if b == rank]
        if sends and receives:
            rows.append({"rank": rank, "sends": median(sends), "receives": median(receives)})
    return rows


def by_nodes(bandwidth: Matrix, nodes: Sequence[tuple[str, int]]) -> list[dict[str, str | float]]:
    """From node to node, the median over their GPUs; slowest first."""
    links: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (a, b), value in bandwidth.items():
        if nodes[a][0] != nodes[b][0]:
            links[nodes[a][0], nodes[b][0]].append(value)
    rows: list[dict[str, str | float]] = [
        {"sender": sender, "receiver": receiver, "GB_per_s": median(values)}
        for (sender, receiver), values in links.items()
    ]
    return sorted(rows, key=lambda row: row["GB_per_s"])
