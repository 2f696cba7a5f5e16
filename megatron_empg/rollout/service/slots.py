"""How many groups a stream may hold so that none is trained on later than its lag allows: pure, without I/O.

With v the newest published version, k batches handed over, B groups per batch and lag N, so many groups may be
outstanding (entered, and neither trained on nor dropped):

    (min(v + N + 1, steps) - k) · B

A group that enters at version v is then behind fewer than (v + N + 1 - k) · B others, so that batch v + N holds it
at the latest, unless it plays so long that others which entered later are done before it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Reason = Literal["equal", "errors", "stale"]
"""Why a group is dropped: the algorithm's filter, errors that left fewer than two episodes, or its age."""
REASONS: tuple[Reason, ...] = ("equal", "errors", "stale")


@dataclass(frozen=True)
class StreamAccount:
    """Where a stream stands behind a batch; the batch carries it, and a run that is resumed goes on from there.

    Groups are numbered from 0 in the order in which they enter. Example, after the first batch of two groups::

        StreamAccount(batches=1, started=4, trained=2, dropped={"equal": 1}, unfinished=[3], numbers=[2, 0])
    """

    batches: int = 0
    """Handed over so far."""
    started: int = 0
    trained: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    unfinished: Sequence[int] = ()
    """Numbers of those that have entered and were neither trained on nor dropped, finished ones among them."""
    numbers: Sequence[int] = ()
    """The batch's groups, in its order."""

    def __post_init__(self) -> None:
        """Raises ValueError unless every group that has started is in one place."""
        placed = self.trained + sum(self.dropped.values()) + len(self.unfinished)
        if placed != self.started:
            raise ValueError(
                f"the stream's account does not balance: {self.started} groups started, {self.trained} were "
                f"trained on, {sum(self.dropped.values())} dropped, {len(self.unfinished)} are unfinished"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> StreamAccount:
        """Raises ValueError or TypeError for what `to_json` never made."""
        return cls(**given)


class Slots:
    """The slots of a stream whose batches are `groups` groups, until `steps` batches are handed over.

    It begins where the `account` ends: groups that were unfinished then enter first, under their numbers.
    """

    def __init__(
        self, groups: int, max_lag: int, steps: int, *, version: int = 0, account: StreamAccount | None = None
    ) -> None:
        account = account or StreamAccount()
        self.groups, self.max_lag, self.steps = groups, max_lag, steps
        self.version = version
        """The newest that was published."""
        self.taken = account.batches
        """Batches handed over: the number of the next one."""
        self._trained, self._dropped = account.trained, Counter(account.dropped)
        self._again = deque(account.unfinished)
        self._next = account.started
        self._outstanding: dict[int, int | None] = {}
        """The version under which a group began to play, by its number; None before."""

    @property
    def outstanding(self) -> int:
        """Groups that have a slot."""
        return len(self._outstanding)

    @property
    def free(self) -> int:
        """Groups that may enter now; below 0 where a resumed run has still to catch up with its batches."""
        covered = min(self.version + self.max_lag + 1, self.steps)
        return (covered - self.taken) * self.groups - self.outstanding

    def enter(self) -> int:
        """Charge a slot: the number of the group that has it. Raises ValueError when none is free."""
        if self.free <= 0:
            raise ValueError(f"no slot is free: {self.outstanding} groups are outstanding")
        if self._again:
            number = self._again.popleft()
        else:
            number, self._next = self._next, self._next + 1
        self._outstanding[number] = None
        return number

    def began(self, number: int) -> None:
        """An episode of the group begins to play, under the newest version. A group that has no slot any more is
        passed over: it is being ended.
        """
        if number in self._outstanding and self._outstanding[number] is None:
            self._outstanding[number] = self.version

    def drop(self, number: int, reason: Reason) -> None:
        """Give the slot back: nobody will be trained on the group."""
        del self._outstanding[number]
        self._dropped[reason] += 1

    def publish(self, version: int) -> None:
        """The engines hold these weights. Raises ValueError for a version older than the newest."""
        if version < self.version:
            raise ValueError(f"version {version} was published after version {self.version}")
        self.version = version

    def take(self, numbers: Sequence[int]) -> StreamAccount:
        """Hand over the next batch, of these groups. How the stream stands then."""
        for number in numbers:
            del self._outstanding[number]
        self._trained += len(numbers)
        self.taken += 1
        return StreamAccount(
            batches=self.taken,
            started=self._next,
            trained=self._trained,
            dropped=dict(self._dropped),
            unfinished=sorted([*self._outstanding, *self._again]),
            numbers=list(numbers),
        )

    def too_old(self) -> list[int]:
        """Groups that no batch may be trained on any more."""
        oldest = self.taken - self.max_lag
        return [number for number, began in self._outstanding.items() if began is not None and began < oldest]
