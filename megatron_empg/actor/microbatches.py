"""Which sequences go into which microbatch of which data-parallel rank: even costs, few microbatches."""

import bisect
import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as SequenceOf

Microbatches = list[list[int]]
"""Sequence indices by microbatch."""
Costs = Mapping[int, float]
"""The cost of a sequence, from its length."""


def plan_microbatches(
    lengths: SequenceOf[int],
    *,
    budget: int,
    ranks: int,
    cost: Callable[[int], float] = float,
    multiple: int = 1,
    equal: bool = False,
) -> list[Microbatches]:
    """Every data-parallel rank's microbatches of at most ``budget`` tokens.

    Longest first, each sequence goes to the rank with the least cost, there to the microbatch with the least cost
    that has room, among as few as best-fit-decreasing bin packing needs. Each rank's number of microbatches is a
    ``multiple``, and the same for all where ``equal``; microbatches without sequences make it up, and a rank
    without sequences has those alone: it still enters every collective. Raises ValueError for a sequence longer
    than the budget.
    """
    order = _longest_first(range(len(lengths)), lengths)
    if order and lengths[order[0]] > budget:
        raise ValueError(
            f"a sequence of {lengths[order[0]]} tokens (padded) exceeds the {budget} tokens that a microbatch may "
            "hold (actor.max_tokens_per_microbatch x actor.context_parallel)"
        )
    costs = {length: cost(length) for length in set(lengths)}
    shares = _shares(order, lengths, ranks, costs)
    plans = [_spread(share, lengths, budget, costs, multiple) for share in shares]
    if equal:
        most = max(len(plan) for plan in plans)
        plans = [_again(plan, lengths, budget, costs, most) for plan in plans]
    return plans


def _longest_first(indices: Iterable[int], lengths: SequenceOf[int]) -> list[int]:
    """The sequences by falling length; those of one length in their order."""
    return sorted(indices, key=lambda index: (-lengths[index], index))


def _shares(order: list[int], lengths: SequenceOf[int], ranks: int, costs: Costs) -> list[list[int]]:
    """Each rank's sequences, in the order given."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0.0, rank) for rank in range(ranks)]
    for index in order:
        load, rank = loads[0]
        shares[rank].append(index)
        heapq.heapreplace(loads, (load + costs[lengths[index]], rank))
    return shares


def _spread(share: list[int], lengths: SequenceOf[int], budget: int, costs: Costs, multiple: int) -> Microbatches:
    """Few microbatches, a `multiple` of them, that hold the share. Their costs are evened if that fits."""
    packed = _best_fit(share, lengths, budget)
    count = _rounded_up(max(len(packed), 1), multiple)
    plan = _fill(share, lengths, budget, costs, count) or _padded(packed, count)
    tokens = sum(lengths[index] for index in share)
    # Best-fit may have needed more microbatches than the even filling does: try fewer, as long as the tokens fit.
    while count > multiple and tokens <= budget * (count - multiple):
        count -= multiple
        fewer = _fill(share, lengths, budget, costs, count)
        if fewer is None:
            break
        plan = fewer
    return plan


def _again(plan: Microbatches, lengths: SequenceOf[int], budget: int, costs: Costs, count: int) -> Microbatches:
    """The same sequences in more microbatches; the plan itself where it has so many."""
    if len(plan) == count:
        return plan
    share = _longest_first(itertools.chain.from_iterable(plan), lengths)
    return _fill(share, lengths, budget, costs, count) or _padded(plan, count)


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _padded(plan: Microbatches, count: int) -> Microbatches:
    return plan + [[] for _ in range(count - len(plan))]


def _best_fit(share: list[int], lengths: SequenceOf[int], budget: int) -> Microbatches:
    """Put each sequence, longest first, into the microbatch in which it leaves the least room."""
    batches: Microbatches = []
    rooms: list[tuple[int, int]] = []
    for index in share:
        place = bisect.bisect_left(rooms, (lengths[index], -1))
        if place == len(rooms):
            room, number = budget, len(batches)
            batches.append([])
        else:
            room, number = rooms.pop(place)
        batches[number].append(index)
        bisect.insort(rooms, (room - lengths[index], number))
    return batches


def _fill(
    share: list[int], lengths: SequenceOf[int], budget: int, costs: Costs, count: int
) -> Microbatches | None:
    """Put each sequence, longest first, into the cheapest microbatch that has room; None where none has room."""
    batches: Microbatches = [[] for _ in range(count)]
    room = [budget] * count
    roomy = [(0.0, number) for number in range(count)]
    # Those without room for the sequence at hand, the roomiest first: a shorter one may fit again.
    short: list[tuple[int, float, int]] = []
    for index in share:
        length = lengths[index]
        while short and -short[0][0] >= length:
            _, load, number = heapq.heappop(short)
            heapq.heappush(roomy, (load, number))
        while roomy and room[roomy[0][1]] < length:
            load, number = heapq.heappop(roomy)
            heapq.heappush(short, (-room[number], load, number))
        if not roomy:
            return None
        load, number = roomy[0]
        heapq.heapreplace(roomy, (load + costs[length], number))
        batches[number].append(index)
        room[number] -= length
    return batches
