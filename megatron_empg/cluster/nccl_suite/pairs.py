"""Bandwidth between pairs of GPUs: inside each node all pairs, between nodes those with the same local rank.

Pairs are played as a round-robin tournament. Rounds of disjoint pairs run at once over NCCL; over gloo, where the
ranks may share one machine, one pair at a time.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Sequence
from operator import itemgetter
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from megatron_empg.cluster.nccl_suite.bandwidth import algorithm_bandwidth
from megatron_empg.cluster.nccl_suite.faults import SuiteFault
from megatron_empg.cluster.nccl_suite.session import SuiteSession
from megatron_empg.cluster.nccl_suite.slow_links import Matrix, find_slow

Pair = tuple[int, int]
_TURNS = 5


def tournament(members: Sequence[int]) -> list[list[Pair]]:
    """Rounds of disjoint pairs in which everybody meets everybody once (circle method)."""
    ring: list[int | None] = [*members]
    if len(members) % 2:
        ring.append(None)  # whoever meets it has nothing to do in that round
    rounds = []
    for _ in range(len(ring) - 1):
        half = len(ring) // 2
        pairs: list[Pair] = []
        for one, other in zip(ring[:half], reversed(ring[half:]), strict=True):
            if one is not None and other is not None:
                pairs.append((one, other))
        if pairs:
            rounds.append(pairs)
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return rounds


def schedule(nodes: Sequence[tuple[str, int]], at_once: bool) -> list[list[Pair]]:
    """Rounds of rank pairs, given (node, local rank) of every rank."""
    by_node, by_rail = defaultdict(list), defaultdict(list)
    for rank, (node, local) in enumerate(nodes):
        by_node[node].append(rank)
        by_rail[local].append(rank)
    rounds: list[list[Pair]] = []
    inside = [tournament(ranks) for ranks in by_node.values()]
    for of_the_nodes in itertools.zip_longest(*inside, fillvalue=()):  # nodes do not share their links
        rounds.append(list(itertools.chain.from_iterable(of_the_nodes)))
    for ranks in by_rail.values():  # one rail at a time: rails may share a network card
        rounds += tournament(ranks)
    if at_once:
        return rounds
    return [[pair] for pair in itertools.chain.from_iterable(rounds)]


def find_slow_pairs(
    session: SuiteSession, size: int, below: float, least: float | None
) -> tuple[Matrix, list[SuiteFault]]:
    """(GB/s from rank to rank, slow nodes and links), complete on rank 0 only.

    Pairs that look slow are measured twice more and keep their best: a busy moment is not a bad cable.
    """
    rounds = schedule(session.nodes, session.backend == "nccl")
    matrix = measure_pairs(session, rounds, size)
    for _ in range(2):
        faults = judge_pairs(matrix, session.nodes, below, least)
        suspects = set(itertools.chain.from_iterable(fault.ranks for fault in faults))
        rounds = session.agree("the pairs to measure again", _rounds_with(suspects, rounds))
        for pair, value in measure_pairs(session, rounds, size).items():
            matrix[pair] = max(value, matrix[pair])
    return matrix, judge_pairs(matrix, session.nodes, below, least)


def _rounds_with(suspects: set[int], rounds: Sequence[Sequence[Pair]]) -> list[list[Pair]]:
    """The pairs in which one of them plays, in their rounds; no round is empty."""
    found = []
    for pairs in rounds:
        suspicious = [pair for pair in pairs if suspects & set(pair)]
        if suspicious:
            found.append(suspicious)
    return found


def measure_pairs(session: SuiteSession, rounds: Sequence[Sequence[Sequence[int]]], size: int) -> Matrix:
    """GB/s from rank to rank, the best of a few turns; complete on rank 0 only."""
    me = session.place.rank
    mine: list[tuple[int, int, float]] = []
    given = torch.zeros(size, dtype=torch.uint8, device=session.device)
    acknowledge = torch.zeros(1, dtype=torch.uint8, device=session.device)
    for pairs in rounds:
        one, other = _pair_of(me, pairs)
        players: tuple[int, ...] = ()
        directions: tuple[Pair, ...] = ()
        if me in (one, other):
            players = (one, other)
            directions = ((one, other), (other, one))
        with session.step(f"bandwidth between rank {one} and rank {other}", players):
            for sender, receiver in directions:
                seconds = [_one_way(session, given, acknowledge, sender, receiver) for _ in range(_TURNS)]
                if me == sender:
                    mine.append((sender, receiver, algorithm_bandwidth(size, min(seconds))))
        if session.backend == "gloo":
            with session.step("end of a pair", range(session.place.world_size)):
                dist.barrier()
    found: Matrix = {}
    for part in session.exchange("pairs", mine):
        for sender, receiver, value in part:
            found[sender, receiver] = value
    return found


def _pair_of(rank: int, pairs: Sequence[Sequence[int]]) -> Sequence[int]:
    """The pair in which it plays; (-1, -1) where it does not."""
    for pair in pairs:
        if rank in pair:
            return pair
    return (-1, -1)


def _one_way(session: SuiteSession, given: Any, acknowledge: Any, sender: int, receiver: int) -> float:
    """Seconds from sending to the receiver's word that all is there."""
    if session.place.rank == sender:
        peer, steps = receiver, [(dist.isend, given), (dist.irecv, acknowledge)]
    else:
        peer, steps = sender, [(dist.irecv, given), (dist.isend, acknowledge)]
    start = time.perf_counter()
    for operation, buffer in steps:
        for work in dist.batch_isend_irecv([dist.P2POp(operation, buffer, peer)]):
            work.wait()
    session.synchronize()
    return time.perf_counter() - start


def judge_pairs(
    bandwidth: Matrix, nodes: Sequence[tuple[str, int]], below: float, least: float | None = None
) -> list[SuiteFault]:
    """Slow nodes, GPUs and links of a rank-to-rank matrix; ``least`` is a floor in GB/s for every pair."""
    names = [f"rank {rank} ({node}, GPU {local})" for rank, (node, local) in enumerate(nodes)]
    faults = []
    for found in _slow_between_nodes(bandwidth, nodes, below) + _slow_inside(bandwidth, nodes, names, below):
        faults.append(SuiteFault("slow", found[0], found[1]))
    for (a, b), value in bandwidth.items():
        if least is not None and value < least:
            what = f"link {names[a]} -> {names[b]}: {value:.3g} GB/s, below the {least:g} asked for"
            faults.append(SuiteFault("slow", (a, b), what))
    return faults


def _slow_between_nodes(
    bandwidth: Matrix, nodes: Sequence[tuple[str, int]], below: float
) -> list[tuple[tuple[int, ...], str]]:
    """Rail by rail; a node whose every rail is slow is named once."""
    order = sorted({node for node, _ in nodes})
    rails = sorted({local for _, local in nodes})
    names = [f"node {name}" for name in order]
    slow: dict[tuple[tuple[int, ...], str], list[tuple[int, str]]] = defaultdict(list)
    for rail in rails:
        for found in find_slow(_matrix_of_rail(bandwidth, nodes, order, rail), below):
            slow[found.members, found.direction].append((rail, found.sentence(names)))
    answers = []
    for (members, _), found_rails in slow.items():
        guilty = [rail for rail, _ in found_rails]
        on = ""
        if guilty != rails:
            on = f", GPU {', '.join(map(str, guilty))} only"
        slow_nodes = {order[member] for member in members}
        ranks = _ranks_at(nodes, slow_nodes, guilty)
        answers.append((ranks, found_rails[0][1] + on))
    return answers


def _matrix_of_rail(
    bandwidth: Matrix, nodes: Sequence[tuple[str, int]], order: Sequence[str], rail: int
) -> Matrix:
    """From node to node, by their numbers in `order`, over the GPUs of one local rank."""
    matrix: Matrix = {}
    for (sender, receiver), value in bandwidth.items():
        (from_node, from_local), (to_node, to_local) = nodes[sender], nodes[receiver]
        if from_node != to_node and from_local == to_local == rail:
            matrix[order.index(from_node), order.index(to_node)] = value
    return matrix


def _ranks_at(nodes: Sequence[tuple[str, int]], names: set[str], rails: Sequence[int]) -> tuple[int, ...]:
    """The ranks of these nodes with these local ranks."""
    found = []
    for rank, (node, local) in enumerate(nodes):
        if node in names and local in rails:
            found.append(rank)
    return tuple(found)


def _slow_inside(
    bandwidth: Matrix, nodes: Sequence[tuple[str, int]], names: Sequence[str], below: float
) -> list[tuple[tuple[int, ...], str]]:
    """GPUs and links inside a node, and nodes whose GPUs are slow altogether."""
    inside: dict[str, Matrix] = defaultdict(dict)
    for (a, b), value in bandwidth.items():
        if nodes[a][0] == nodes[b][0]:
            inside[nodes[a][0]][a, b] = value
    answers = []
    for matrix in inside.values():
        for found in find_slow(matrix, below):
            answers.append((found.members, found.sentence(names)))
    usual = {node: median(matrix.values()) for node, matrix in inside.items()}
    for node, value in usual.items():
        others = [other for name, other in usual.items() if name != node]
        if len(others) > 1 and value < below * median(others):
            rails = [local for _, local in nodes]
            ranks = _ranks_at(nodes, {node}, rails)
            answers.append(
                (ranks, f"node {node}: its GPUs exchange {value:.3g} GB/s, others' {median(others):.3g}")
            )
    return answers


def by_gpu(bandwidth: Matrix, world_size: int) -> list[dict[str, float | int]]:
    """Each rank's median sending and receiving bandwidth."""
    sends: dict[int, list[float]] = defaultdict(list)
    receives: dict[int, list[float]] = defaultdict(list)
    for (sender, receiver), value in bandwidth.items():
        sends[sender].append(value)
        receives[receiver].append(value)
    rows: list[dict[str, float | int]] = []
    for rank in range(world_size):
        if rank in sends and rank in receives:
            rows.append({"rank": rank, "sends": median(sends[rank]), "receives": median(receives[rank])})
    return rows


def by_nodes(bandwidth: Matrix, nodes: Sequence[tuple[str, int]]) -> list[dict[str, str | float]]:
    """Bandwidth from node to node, the median over their GPUs; the slowest comes first."""
    links: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (a, b), value in bandwidth.items():
        if nodes[a][0] != nodes[b][0]:
            links[nodes[a][0], nodes[b][0]].append(value)
    rows: list[dict[str, str | float]] = []
    for (sender, receiver), values in links.items():
        rows.append({"sender": sender, "receiver": receiver, "GB_per_s": median(values)})
    return sorted(rows, key=itemgetter("GB_per_s"))
