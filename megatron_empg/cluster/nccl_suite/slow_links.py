"""Slow nodes and slow links, told apart by comparing pairs. Pure: a matrix in, names out."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import median

Matrix = dict[tuple[int, int], float]
"""Bandwidth (GB/s) from one member to another."""


@dataclass(frozen=True)
class SlowMembers:
    """``members`` is one (all its pairs are slow) or two (only the link from the first to the second is)."""

    members: tuple[int, ...]
    direction: str
    bandwidth: float
    rest: float

    def sentence(self, names: Sequence[str]) -> str:
        """The fault as a sentence for the report."""
        share = f"{self.bandwidth:.3g} GB/s, the rest {self.rest:.3g}"
        if len(self.members) == 1:
            return f"{names[self.members[0]]}: {self.direction} on every link ({share})"
        first, second = (names[member] for member in self.members)
        return f"link {first} -> {second}: slow ({share})"


def find_slow(bandwidth: Matrix, below: float) -> list[SlowMembers]:
    """Members and links slower than ``below`` times the median of the rest.

    A member is slow when even the best of its links, in one direction or both, is; the rest are the links
    without it. Needs three members: of two nobody can say which is the slow one.
    """
    left = sorted({member for pair in bandwidth for member in pair})
    found: list[SlowMembers] = []
    while len(left) > 2:
        judged = [_slow_member(bandwidth, left, member, below) for member in left]
        slow = [member for member in judged if member is not None]
        if not slow:
            break
        worst = min(slow, key=_share)
        found.append(worst)
        left.remove(worst.members[0])
    links = {pair: bandwidth[pair] for pair in permutations(left, 2) if pair in bandwidth}
    for pair, value in links.items():
        others = [other for at, other in links.items() if at != pair]
        if others and value < below * median(others):
            found.append(SlowMembers(pair, "slow", value, median(others)))
    return found


def _share(slow: SlowMembers) -> float:
    return slow.bandwidth / slow.rest


def _slow_member(bandwidth: Matrix, members: Sequence[int], member: int, below: float) -> SlowMembers | None:
    rest = [value for (a, b), value in bandwidth.items() if {a, b} <= set(members) - {member}]
    sends = [value for (a, b), value in bandwidth.items() if a == member and b in members]
    receives = [value for (a, b), value in bandwidth.items() if b == member and a in members]
    if not rest or not sends or not receives:
        return None
    limit = below * median(rest)
    slow = {}
    for word, values in (("sends slowly", sends), ("receives slowly", receives)):
        if max(values) < limit:
            slow[word] = max(values)
    if not slow:
        return None
    return SlowMembers((member,), " and ".join(slow), min(slow.values()), median(rest))


def find_late(seconds_late: Sequence[Sequence[float]], floor: float) -> list[int]:
    """Ranks whose median lateness (by rank, then round) is above ``floor`` and twice the median of the others'."""
    usual = [median(rounds) for rounds in seconds_late]
    late = []
    for rank, value in enumerate(usual):
        others = [other for at, other in enumerate(usual) if at != rank]
        if others and value > floor and value > 2 * median(others):
            late.append(rank)
    return late
