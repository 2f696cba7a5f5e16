"""Every collective the project uses, made ready to run: buffers filled, the call, and what must come back.

The same functions serve the checks of correctness and the measurements.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_empg.cluster.nccl_suite import patterns
from megatron_empg.upstream.torch_distributed import coalesced, single_tensor_collectives

_all_gather, _reduce_scatter = single_tensor_collectives()


@dataclass(frozen=True)
class GroupMembers:
    """A process group as one of its ranks sees it. ``ranks`` are global."""

    kind: str
    ranks: tuple[int, ...]
    group: Any
    me: int

    @property
    def size(self) -> int:
        return len(self.ranks)

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.ranks))
        if self.size > 16:
            shown = f"{self.ranks[0]} ... {self.ranks[-1]}"
        return f"{self.kind} [{shown}]"


@dataclass(frozen=True)
class CollectiveCase:
    """What to send: ``size`` in bytes as nccl-tests counts it, ``seed`` unlike every other case's."""

    members: GroupMembers
    dtype: torch.dtype
    size: int
    seed: int
    device: torch.device

    def whole(self) -> int:
        """Elements of a buffer of the full size."""
        return max(1, self.size // self.dtype.itemsize)

    def share(self) -> int:
        """Elements of one member's part of the size."""
        return max(1, self.size // (self.dtype.itemsize * self.members.size))

    def empty(self, elements: int) -> Tensor:
        return torch.empty(elements, dtype=self.dtype, device=self.device)

    def data(self, elements: int, *who: int) -> Tensor:
        buffer = self.empty(elements)
        patterns.fill(buffer, self.table(*who))
        return buffer

    def table(self, *who: int) -> Tensor:
        return patterns.data_table(self.dtype, self.seed, self.members.ranks[0], *who)

    def addend(self, member: int, *what: int) -> Tensor:
        return patterns.addend_table(
            self.dtype, self.members.size, member, self.seed, self.members.ranks[0], *what
        )


@dataclass(frozen=True)
class ReceivedPiece:
    """A received piece, the table it must repeat, and the member it came from (None: all, as in a sum)."""

    buffer: Tensor
    table: Tensor
    source: int | None
    tolerance: float = 0.0


@dataclass(frozen=True)
class CollectiveExchange:
    """A collective about to run. ``size`` is what it really moves, as nccl-tests counts it."""

    start: Callable[[], Iterable[Any]]
    sent: list[Tensor]
    expected: list[ReceivedPiece]
    size: int

    def run(self) -> None:
        """Start and wait for the result."""
        for work in self.start():
            work.wait()


def all_reduce(case: CollectiveCase) -> CollectiveExchange:
    return _all_reduce(case, dist.ReduceOp.SUM, lambda tables: sum(tables[1:], tables[0]))


def all_reduce_max(case: CollectiveCase) -> CollectiveExchange:
    return _all_reduce(case, dist.ReduceOp.MAX, lambda tables: torch.stack(tables).amax(0))


def all_reduce_average(case: CollectiveCase) -> CollectiveExchange:
    """Exact where the number of members is a power of two; elsewhere 1/n rounds, and last bits may differ."""
    size = case.members.size
    exact = size & (size - 1) == 0
    tolerance = 0.0
    if not exact:
        tolerance = 4 * torch.finfo(case.dtype).eps * patterns.LARGEST_SUM[case.dtype]
    return _all_reduce(
        case,
        dist.ReduceOp.AVG,
        lambda tables: (torch.stack(tables).double().sum(0) / size).to(case.dtype),
        tolerance,
    )


def _all_reduce(
    case: CollectiveCase, operation: Any, combine: Callable[[list[Tensor]], Any], tolerance: float = 0
) -> CollectiveExchange:
    members = case.members
    tables = [case.addend(member) for member in range(members.size)]
    buffer = case.empty(case.whole())
    patterns.fill(buffer, tables[members.me])
    return CollectiveExchange(
        lambda: [dist.all_reduce(buffer, operation, group=members.group, async_op=True)],
        [buffer],
        [ReceivedPiece(buffer, combine(tables), None, tolerance)],
        buffer.nbytes,
    )


def all_reduce_coalesced(case: CollectiveCase) -> CollectiveExchange:
    """Three tensors reduced as one, as Megatron's gradient buckets are."""
    members = case.members
    tables = [case.addend(member) for member in range(members.size)]
    buffers = [case.empty(max(1, case.whole() // part)) for part in (2, 3, 6)]
    for buffer in buffers:
        patterns.fill(buffer, tables[members.me])
    total = sum(tables[1:], tables[0])

    def start() -> list[Any]:
        return _coalesced(case, lambda b: dist.all_reduce(b, group=members.group), [(b,) for b in buffers])

    parts = [ReceivedPiece(buffer, total, None) for buffer in buffers]
    return CollectiveExchange(start, buffers, parts, sum(b.nbytes for b in buffers))


def reduce_scatter(case: CollectiveCase) -> CollectiveExchange:
    """Member m's result is the sum of everybody's m-th share."""
    given, got, part = _reduce_scatter_buffers(case, case.share(), 0)
    group = case.members.group
    return CollectiveExchange(
        lambda: [_reduce_scatter(got, given, group=group, async_op=True)], [given], [part], given.nbytes
    )


def reduce_scatter_coalesced(case: CollectiveCase) -> CollectiveExchange:
    buffers = [_reduce_scatter_buffers(case, max(1, case.share() // part), part) for part in (2, 3, 6)]
    group = case.members.group

    def start() -> list[Any]:
        pairs = [(got, given) for given, got, _ in buffers]
        return _coalesced(case, lambda got, given: _reduce_scatter(got, given, group=group), pairs)

    size = sum(given.nbytes for given, _, _ in buffers)
    return CollectiveExchange(start, [given for given, _, _ in buffers], [part for _, _, part in buffers], size)


def _reduce_scatter_buffers(case: CollectiveCase, share: int, number: int) -> tuple[Tensor, Tensor, ReceivedPiece]:
    size, me = case.members.size, case.members.me

    def table(source: int, destination: int) -> Tensor:
        return case.addend(source, number, destination)

    given, got = case.empty(share * size), case.empty(share)
    for destination in range(size):
        patterns.fill(given[destination * share :][:share], table(me, destination))
    total = table(0, me)
    for source in range(1, size):
        total = total + table(source, me)
    return given, got, ReceivedPiece(got, total, None)


def all_gather(case: CollectiveCase) -> CollectiveExchange:
    given, got, parts = _all_gather_buffers(case, case.share(), 0)
    group = case.members.group
    return CollectiveExchange(
        lambda: [_all_gather(got, given, group=group, async_op=True)], [given], parts, got.nbytes
    )


def all_gather_list(case: CollectiveCase) -> CollectiveExchange:
    """All-gather into a list of tensors, as the weights of tensor-parallel ranks are put together."""
    given, got, parts = _all_gather_buffers(case, case.share(), 0)
    pieces = list(got.chunk(case.members.size))
    group = case.members.group
    return CollectiveExchange(
        lambda: [dist.all_gather(pieces, given, group=group, async_op=True)], [given], parts, got.nbytes
    )


def all_gather_coalesced(case: CollectiveCase) -> CollectiveExchange:
    buffers = [_all_gather_buffers(case, max(1, case.share() // part), part) for part in (2, 3, 6)]
    group = case.members.group

    def start() -> list[Any]:
        pairs = [(got, given) for given, got, _ in buffers]
        return _coalesced(case, lambda got, given: _all_gather(got, given, group=group), pairs)

    parts = [part for _, _, parts in buffers for part in parts]
    return CollectiveExchange(
        start, [given for given, _, _ in buffers], parts, sum(got.nbytes for _, got, _ in buffers)
    )


def _all_gather_buffers(
    case: CollectiveCase, share: int, number: int
) -> tuple[Tensor, Tensor, list[ReceivedPiece]]:
    size, me = case.members.size, case.members.me
    got = case.empty(share * size)
    parts = [ReceivedPiece(got[s * share :][:share], case.table(number, s), s) for s in range(size)]
    return case.data(share, number, me), got, parts


def broadcast(case: CollectiveCase) -> CollectiveExchange:
    """Broadcast from a member that changes from case to case."""
    members = case.members
    root = case.seed % members.size
    if members.me == root:
        buffer = case.data(case.whole(), root)
    else:
        buffer = case.empty(case.whole())
    return CollectiveExchange(
        lambda: [dist.broadcast(buffer, members.ranks[root], group=members.group, async_op=True)],
        [buffer] if members.me == root else [],
        [ReceivedPiece(buffer, case.table(root), root)],
        buffer.nbytes,
    )


def all_to_all(case: CollectiveCase) -> CollectiveExchange:
    size, me, share = case.members.size, case.members.me, case.share()
    given, got = case.empty(share * size), case.empty(share * size)
    for destination in range(size):
        patterns.fill(given[destination * share :][:share], case.table(me, destination))
    parts = [ReceivedPiece(got[s * share :][:share], case.table(s, me), s) for s in range(size)]
    group = case.members.group
    return CollectiveExchange(
        lambda: [dist.all_to_all_single(got, given, group=group, async_op=True)], [given], parts, given.nbytes
    )


def send_recv(case: CollectiveCase) -> CollectiveExchange:
    """A ring of blocking send and recv: even members send first, so that it cannot lock up."""
    members = case.members
    given, got, before, after = _ring_buffers(case)

    def start() -> list[Any]:
        steps = [
            lambda: dist.send(given, members.ranks[after], group=members.group),
            lambda: dist.recv(got, members.ranks[before], group=members.group),
        ]
        for step in steps if members.me % 2 == 0 else reversed(steps):
            step()
        return []

    return CollectiveExchange(start, [given], [ReceivedPiece(got, case.table(before), before)], given.nbytes)


def batch_isend_irecv(case: CollectiveCase) -> CollectiveExchange:
    """A ring both ways at once, as context-parallel attention and the pipeline use it."""
    members = case.members
    given, got, before, after = _ring_buffers(case)
    given_back, got_back = case.data(case.whole(), members.me, 1), case.empty(case.whole())

    def start() -> list[Any]:
        group = members.group
        return dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, given, members.ranks[after], group, tag=1),
                dist.P2POp(dist.irecv, got, members.ranks[before], group, tag=1),
                dist.P2POp(dist.isend, given_back, members.ranks[before], group, tag=2),
                dist.P2POp(dist.irecv, got_back, members.ranks[after], group, tag=2),
            ]
        )

    parts = [ReceivedPiece(got, case.table(before), before), ReceivedPiece(got_back, case.table(after, 1), after)]
    return CollectiveExchange(start, [given, given_back], parts, given.nbytes)


def _ring_buffers(case: CollectiveCase) -> tuple[Tensor, Tensor, int, int]:
    size, me = case.members.size, case.members.me
    return case.data(case.whole(), me), case.empty(case.whole()), (me - 1) % size, (me + 1) % size


def _coalesced(
    case: CollectiveCase, call: Callable[..., Any], arguments: Iterable[tuple[Tensor, ...]]
) -> list[Any]:
    return coalesced(case.members.group, call, arguments)


COLLECTIVES: dict[str, Callable[[CollectiveCase], CollectiveExchange]] = {
    function.__name__: function
    for function in (
        all_reduce,
        all_reduce_max,
        all_reduce_average,
        all_reduce_coalesced,
        reduce_scatter,
        reduce_scatter_coalesced,
        all_gather,
        all_gather_list,
        all_gather_coalesced,
        broadcast,
        all_to_all,
        send_recv,
        batch_isend_irecv,
    )
}
POINT_TO_POINT = ("send_recv", "batch_isend_irecv")


def supported(name: str, dtype: torch.dtype, members: int) -> bool:
    """Averages of whole numbers are not defined, and one rank has nobody to send to."""
    if name == "all_reduce_average" and not dtype.is_floating_point:
        return False
    return members > 1 or name not in POINT_TO_POINT
