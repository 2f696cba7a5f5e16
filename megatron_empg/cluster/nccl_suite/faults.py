"""What the suite finds wrong, and whom the findings point at."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["corrupt", "missing", "late", "slow", "error"]


@dataclass(frozen=True)
class SuiteFault:
    """One finding. ``ranks`` are the culprits as far as known."""

    kind: Kind
    ranks: tuple[int, ...]
    what: str
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ranks": list(self.ranks)}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "SuiteFault":
        return cls(given["kind"], tuple(given["ranks"]), given["what"], given["details"])


@dataclass(frozen=True)
class WrongBytes:
    """A wrong element as one rank received it. ``source`` is None where all members' data are summed."""

    group: str
    collective: str
    dtype: str
    size: int
    rank: int
    source: int | None
    offset: int
    got: str
    expected: str


def blame(wrong: Iterable[WrongBytes]) -> list[SuiteFault]:
    """Who corrupts: a rank all of whose wrong data others saw, one that alone saw wrong data, else each finding.

    Only data that arrive as they were sent name their source; sums confirm.
    """
    found = list(wrong)
    if not found:
        return []
    sent = [each for each in found if each.source is not None]
    sources = Counter(each.source for each in sent)
    observers = Counter(each.rank for each in found)
    first = (sent or found)[0]
    details = {"first": asdict(first), "wrong": len(found), "sources": dict(sources), "observers": dict(observers)}
    if len(sources) == 1 and (len(observers) > 1 or first.rank != first.source):
        culprit, does = first.source, "sends wrong data"
    elif len(observers) == 1:
        culprit, does = first.rank, "receives wrong data"
    else:
        culprit, does = None, "more than one rank has wrong data"
    if culprit is None:
        ranks = tuple(sorted(source for source in sources if source is not None))
        who = does
    else:
        ranks = (culprit,)
        who = f"rank {culprit} {does}"
    return [SuiteFault("corrupt", ranks, f"{who}; first {_told(first)}; {len(found)} wrong in all", details)]


def _told(wrong: WrongBytes) -> str:
    """Where it was found, what came, and from whom."""
    origin = "the sum"
    if wrong.source is not None:
        origin = f"rank {wrong.source}"
    where = f"{wrong.collective} of {wrong.size} bytes of {wrong.dtype} in group {wrong.group}"
    what = f"got {wrong.got} instead of {wrong.expected} at byte {wrong.offset}"
    return f"{where}: rank {wrong.rank} {what} from {origin}"


def wrong_bytes(gathered: Iterable[Iterable[dict[str, Any]]]) -> list[WrongBytes]:
    """What each rank found, from JSON, in one list."""
    found = []
    for of_rank in gathered:
        for given in of_rank:
            found.append(WrongBytes(**given))
    return found
