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
    sent = [w for w in found if w.source is not None]
    sources, observers = Counter(w.source for w in sent), Counter(w.rank for w in found)
    first = (sent or found)[0]
    details = {"first": asdict(first), "wrong": len(found), "sources": dict(sources), "observers": dict(observers)}
    if len(sources) == 1 and (len(observers) > 1 or first.rank != first.source):
        culprit, does = first.source, "sends wrong data"
    elif len(observers) == 1:
        culprit, does = first.rank, "receives wrong data"
    else:
        culprit, does = None, "more than one rank has wrong data"
    where = (
        f"{first.collective} of {first.size} bytes of {first.dtype} in group {first.group}: rank {first.rank} got "
        f"{first.got} instead of {first.expected} at byte {first.offset} from "
        + (f"rank {first.source}" if first.source is not None else "the sum")
    )
    if culprit is None:
        ranks = tuple(sorted(r for r in sources if r is not None))
    else:
        ranks = (culprit,)
    if culprit is not None:
        who = f"rank {culprit} {does}"
    else:
        who = does
    return [SuiteFault("corrupt", ranks, f"{who}; first {where}; {len(found)} wrong in all", details)]
