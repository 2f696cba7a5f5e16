"""Which sequences go into which microbatch of which data-parallel rank: even costs, few microbatches."""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

Microbatches = list[list[int]]
"""Sequence indices by microbatch."""


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

    Costliest first, each sequence goes to the rank with the least cost, there to the microbatch with the least
    cost that has room. Each rank's number of microbatches is a ``multiple``, and the same for all where ``equal``;
    microbatches without sequences make it up, and a rank without sequences has those alone: it still enters every
    collective. Raises ValueError for a sequence longer than the budget.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if order and lengths[order[0]] > budget:
        raise ValueError(
            f"a sequence of {lengths[order[0]]} tokens (padded) exceeds the {budget} tokens that a microbatch may "
            "hold (actor.max_tokens_per_microbatch x actor.context_parallel)"
        )
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [0.0] * ranks
    for index in order:
        target = min(range(ranks), key=load.__getitem__)
        load[target] += cost(lengths[index])
        shares[target].append(index)
    plans = [_spread(share, lengths, budget, cost, multiple) for share in shares]
    while equal and len({len(plan) for plan in plans}) > 1:
        most = max(len(plan) for plan in plans)
        plans = [_spread(share, lengths, budget, cost, multiple, at_least=most) for share in shares]
    return plans


def _spread(
    share: list[int],
    lengths: SequenceOf[int],
    budget: int,
    cost: Callable[[int], float],
    multiple: int,
    at_least: int = 1,
) -> Microbatches:
    """The smallest allowed number of microbatches that the share fits into, their costs made even by greed."""
    count = max(at_least, -(-sum(lengths[i] for i in share) // budget))
    while True:
        count = -(-count // multiple) * multiple
        batches = _fill(share, lengths, budget, cost, count)
        if batches is not None:
            return batches
        count += 1


def _fill(
    share: list[int], lengths: SequenceOf[int], budget: int, cost: Callable[[int], float], count: int
) -> Microbatches | None:
    batches: Microbatches = [[] for _ in range(count)]
    room, load = [budget] * count, [0.0] * count
    for index in share:
        open_ = [b for b in range(count) if room[b] >= lengths[index]]
        if not open_:
            return None
        best = min(open_, key=load.__getitem__)
        batches[best].append(index)
        room[best] -= lengths[index]
        load[best] += cost(lengths[index])
    return batches
