"""Every collective the project uses, made ready to run: buffers filled, the call, and what must come back.

The same functions serve the checks of correctness and the measurements.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_empg.cluster.nccl_suite import patterns
from megatron_empg.upstream.torch_distributed import coalesced, single_tensor_collectives

_all_gather, _reduce_scatter = single_tensor_collectives()
_DIVISORS = (2, 3, 6)
"""Of a buffer's size: a half, a third and a sixth of it go together as one."""


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


def _starter(group: Any, call: Callable[..., Any], *arguments: Any) -> Callable[[], list[Any]]:
    """Starts one collective without waiting for it."""

    def start() -> list[Any]:
        return [call(*arguments, group=group, async_op=True)]

    return start


def _bytes_of(buffers: Iterable[Tensor]) -> int:
    return sum(buffer.nbytes for buffer in buffers)


def _sum_of(tables: list[Tensor]) -> Tensor:
    return sum(tables[1:], tables[0])


def _largest_of(tables: list[Tensor]) -> Tensor:
    return torch.stack(tables).amax(0)


def all_reduce(case: CollectiveCase) -> CollectiveExchange:
    return _all_reduce(case, dist.ReduceOp.SUM, _sum_of)


def all_reduce_max(case: CollectiveCase) -> CollectiveExchange:
    return _all_reduce(case, dist.ReduceOp.MAX, _largest_of)


def all_reduce_average(case: CollectiveCase) -> CollectiveExchange:
    """Exact where the number of members is a power of two; elsewhere 1/n rounds, and last bits may differ."""
    size = case.members.size
    exact = size & (size - 1) == 0
    tolerance = 0.0
    if not exact:
        tolerance = 4 * torch.finfo(case.dtype).eps * patterns.LARGEST_SUM[case.dtype]

    def average(tables: list[Tensor]) -> Tensor:
        return (torch.stack(tables).double().sum(0) / size).to(case.dtype)

    return _all_reduce(case, dist.ReduceOp.AVG, average, tolerance)


def _all_reduce(
    case: CollectiveCase, operation: Any, combine: Callable[[list[Tensor]], Tensor], tolerance: float = 0
) -> CollectiveExchange:
    members = case.members
    tables = [case.addend(member) for member in range(members.size)]
    buffer = case.empty(case.whole())
    patterns.fill(buffer, tables[members.me])
    start = _starter(members.group, dist.all_reduce, buffer, operation)
    return CollectiveExchange(
        start, [buffer], [ReceivedPiece(buffer, combine(tables), None, tolerance)], buffer.nbytes
    )


def all_reduce_coalesced(case: CollectiveCase) -> CollectiveExchange:
    """Three tensors reduced as one, as Megatron's gradient buckets are."""
    members = case.members
    tables = [case.addend(member) for member in range(members.size)]
    total = _sum_of(tables)
    buffers, parts = [], []
    for divisor in _DIVISORS:
        buffer = case.empty(max(1, case.whole() // divisor))
        patterns.fill(buffer, tables[members.me])
        buffers.append(buffer)
        parts.append(ReceivedPiece(buffer, total, None))

    def start() -> list[Any]:
        return _coalesced(case, partial(dist.all_reduce, group=members.group), zip(buffers, strict=True))

    return CollectiveExchange(start, buffers, parts, _bytes_of(buffers))


def reduce_scatter(case: CollectiveCase) -> CollectiveExchange:
    """Member m's result is the sum of everybody's m-th share."""
    given, got, part = _reduce_scatter_buffers(case, case.share(), 0)
    start = _starter(case.members.group, _reduce_scatter, got, given)
    return CollectiveExchange(start, [given], [part], given.nbytes)


def reduce_scatter_coalesced(case: CollectiveCase) -> CollectiveExchange:
    sent, received, parts = [], [], []
    for divisor in _DIVISORS:
        given, got, part = _reduce_scatter_buffers(case, max(1, case.share() // divisor), divisor)
        sent.append(given)
        received.append(got)
        parts.append(part)

    def start() -> list[Any]:
        call = partial(_reduce_scatter, group=case.members.group)
        return _coalesced(case, call, zip(received, sent, strict=True))

    return CollectiveExchange(start, sent, parts, _bytes_of(sent))


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
    start = _starter(case.members.group, _all_gather, got, given)
    return CollectiveExchange(start, [given], parts, got.nbytes)


def all_gather_list(case: CollectiveCase) -> CollectiveExchange:
    """All-gather into a list of tensors, as the weights of tensor-parallel ranks are put together."""
    given, got, parts = _all_gather_buffers(case, case.share(), 0)
    pieces = list(got.chunk(case.members.size))
    start = _starter(case.members.group, dist.all_gather, pieces, given)
    return CollectiveExchange(start, [given], parts, got.nbytes)


def all_gather_coalesced(case: CollectiveCase) -> CollectiveExchange:
    sent: list[Tensor] = []
    received: list[Tensor] = []
    parts: list[ReceivedPiece] = []
    for divisor in _DIVISORS:
        given, got, own_parts = _all_gather_buffers(case, max(1, case.share() // divisor), divisor)
        sent.append(given)
        received.append(got)
        parts += own_parts

    def start() -> list[Any]:
        call = partial(_all_gather, group=case.members.group)
        return _coalesced(case, call, zip(received, sent, strict=True))

    return CollectiveExchange(start, sent, parts, _bytes_of(received))


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
    sent = []
    if members.me == root:
        buffer = case.data(case.whole(), root)
        sent.append(buffer)
    else:
        buffer = case.empty(case.whole())
    start = _starter(members.group, dist.broadcast, buffer, members.ranks[root])
    return CollectiveExchange(start, sent, [ReceivedPiece(buffer, case.table(root), root)], buffer.nbytes)


def all_to_all(case: CollectiveCase) -> CollectiveExchange:
    size, me, share = case.members.size, case.members.me, case.share()
    given, got = case.empty(share * size), case.empty(share * size)
    for destination in range(size):
        patterns.fill(given[destination * share :][:share], case.table(me, destination))
    parts = [ReceivedPiece(got[s * share :][:share], case.table(s, me), s) for s in range(size)]
    start = _starter(case.members.group, dist.all_to_all_single, got, given)
    return CollectiveExchange(start, [given], parts, given.nbytes)


def send_recv(case: CollectiveCase) -> CollectiveExchange:
    """A ring of blocking send and recv: even members send first, so that it cannot lock up."""
    members = case.members
    given, got, before, after = _ring_buffers(case)

    def start() -> list[Any]:
        send = partial(dist.send, given, members.ranks[after], group=members.group)
        receive = partial(dist.recv, got, members.ranks[before], group=members.group)
        if members.me % 2 == 0:
            send()
            receive()
        else:
            receive()
            send()
        return []

    return CollectiveExchange(start, [given], [ReceivedPiece(got, case.table(before), before)], given.nbytes)


def batch_isend_irecv(case: CollectiveCase) -> CollectiveExchange:
    """A ring both ways at once, as context-parallel attention and the pipeline use it."""
    members = case.members
    given, got, before, after = _ring_buffers(case)
    given_back, got_back = case.data(case.whole(), members.me, 1), case.empty(case.whole())

    def start() -> list[Any]:
        group, previous, following = members.group, members.ranks[before], members.ranks[after]
        onward = dist.P2POp(dist.isend, given, following, group, tag=1)
        from_before = dist.P2POp(dist.irecv, got, previous, group, tag=1)
        back = dist.P2POp(dist.isend, given_back, previous, group, tag=2)
        from_after = dist.P2POp(dist.irecv, got_back, following, group, tag=2)
        return dist.batch_isend_irecv([onward, from_before, back, from_after])

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
