"""Drawing from several groups by weight: shares exact on average, and orders whose prefixes are balanced."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import ceil


def allot(weights: Sequence[float], count: int, rng: random.Random) -> list[int]:
    """How many of `count` draws each group gets: its share rounded down or up, exact on average.

    A systematic draw: points one apart, the first at a random offset below 1, are dealt out to the groups' shares.
    """
    total = sum(weights)
    bounds = [bound / total * count for bound in accumulate(weights)]
    offset = rng.random()
    allotted = []
    before = 0
    for bound in bounds[:-1]:
        below = max(0, ceil(bound - offset))
        allotted.append(below - before)
        before = below
    # Every point lies below the last bound, which rounding must not move.
    return [*allotted, count - before]


def draw(size: int, count: int, rng: random.Random) -> list[int]:
    """`count` indices below `size`, each as often as any other to within one."""
    rounds, rest = divmod(count, size)
    drawn: list[int] = []
    for _ in range(rounds):
        drawn += rng.sample(range(size), size)
    return drawn + rng.sample(range(size), rest)


def ranked(names: Sequence[str]) -> list[int]:
    """Indices in an order that follows from each name alone, so that a name more or less moves no other."""
    keys = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    return sorted(range(len(names)), key=keys.__getitem__)


def interleaved(weights: Sequence[float], sizes: Sequence[int]) -> Iterator[int]:
    """Groups in turn, each as often as its weight says at every point, until all `sizes` are used up."""
    left = list(sizes)
    credit = [0.0] * len(sizes)
    while any(left):
        open_groups = [group for group, remaining in enumerate(left) if remaining]
        total = sum(weights[group] for group in open_groups)
        for group in open_groups:
            credit[group] += weights[group] / total
        chosen = max(open_groups, key=credit.__getitem__)
        credit[chosen] -= 1.0
        left[chosen] -= 1
        yield chosen
