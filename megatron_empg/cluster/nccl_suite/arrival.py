"""Nobody waits forever: every rank says in the store which step it enters, and a thread of each rank watches.

When a step takes too long the store tells who has not come to it, who is gone and who is merely stuck. The thread
reports, and ends the process: a collective that waits for a missing rank cannot be interrupted otherwise.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from megatron_empg.cluster.nccl_suite.faults import SuiteFault

if TYPE_CHECKING:
    import torch.distributed as dist

ABORTED = 3
_PAUSE = 0.5
_BEAT_PATIENCE = 4.0
_REPORT_PATIENCE = 15.0


class ArrivalWatch(threading.Thread):
    """Watches one rank's steps, which all ranks number alike.

    ``store`` is a connection of its own: one that waits would block the thread.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        names: Sequence[str],
        *,
        step_limit: float,
        time_limit: float,
        report: Callable[[SuiteFault], None],
    ) -> None:
        super().__init__(name="arrival watch", daemon=True)
        self._store, self._rank, self._names = store, rank, names
        self._step_limit, self._deadline, self._time_limit = step_limit, time.monotonic() + time_limit, time_limit
        self._report = report
        self._lock = threading.Lock()
        self._number, self._label, self._limit = 0, "start", step_limit
        self._members: Sequence[int] = ()
        self._since: float | None = None
        self._over = threading.Event()
        self._ending = threading.Lock()
        self._say()

    def enter(self, label: str, members: Sequence[int], limit: float | None = None) -> None:
        """This rank comes to the next step; ``members`` are those it will wait for, ``limit`` seconds at most
        (the step limit unless given).
        """
        with self._lock:
            self._number += 1
            self._label, self._members, self._since = label, members, time.monotonic()
            self._limit = self._step_limit if limit is None else limit
            self._say()

    def leave(self) -> None:
        """The step is done."""
        with self._lock:
            self._since = None

    @property
    def number(self) -> int:
        """Steps entered so far."""
        return self._number

    def close(self) -> None:
        """Stop watching."""
        self._over.set()
        self.join(5)

    def fail(self, error: str) -> None:
        """A step failed with an error: find out whose fault it was, report, end. Does not return."""
        with self._lock:
            fault = self._diagnose(f"failed ({error})")
        self._abort(fault)

    def _say(self) -> None:
        self._store.set(f"at/{self._rank}", f"{self._number} {self._label}")

    def run(self) -> None:
        while not self._over.wait(_PAUSE):
            try:
                with self._lock:
                    fault = self._look()
            except Exception as error:  # the store's errors differ between versions of torch
                lost = f"rank {self._rank} lost the store ({str(error).splitlines()[0]})"
                self._end(SuiteFault("error", (0,), f"{lost}: rank 0, which holds it, or its node is gone"))
                return
            if fault:
                self._abort(fault)

    def _look(self) -> SuiteFault | None:
        self._store.add(f"beat/{self._rank}", 1)
        if self._store.check(["abort"]):
            return SuiteFault.from_json(json.loads(self._store.get("abort")))
        now = time.monotonic()
        if self._since is not None and now - self._since > self._limit:
            return self._diagnose(f"was not over after {self._limit:.0f} s")
        if now > self._deadline:
            what = f"out of time: {self._label} was under way when the {self._time_limit:.0f} s given were over"
            return SuiteFault("error", (), f"{what}; raise --time-limit, or lower --max-bytes")
        return None

    def _diagnose(self, happened: str) -> SuiteFault:
        """Who is behind this rank's step, and whose process does not beat any more."""
        before = {member: self._beats(member) for member in self._members}
        until = time.monotonic() + _BEAT_PATIENCE
        while time.monotonic() < until:
            if self._store.check(["abort"]):
                return SuiteFault.from_json(json.loads(self._store.get("abort")))
            self._store.add(f"beat/{self._rank}", 1)
            time.sleep(_PAUSE)
        others = [member for member in self._members if member != self._rank]
        gone = [member for member in others if self._beats(member) == before[member]]
        at = {member: self._at(member) for member in self._members}
        least = min((number for number, _ in at.values()), default=self._number)
        behind = []
        if least < self._number:
            behind = [member for member, (number, _) in at.items() if number == least]
        culprits = tuple(gone or behind)
        if gone:
            why = f"{self._who(gone)}: process stopped or gone"
        elif behind:
            why = f"{self._who(behind)} did not come to it; last seen at {at[behind[0]][1]!r}"
        else:
            why = "all its ranks came to it, so the transport between them hangs"
        details = {"step": self._label, "number": self._number, "seen_by": self._rank}
        return SuiteFault(
            "missing" if culprits else "error", culprits, f"{self._label} {happened}: {why}", details
        )

    def _beats(self, rank: int) -> int:
        return int(self._store.add(f"beat/{rank}", 0))

    def _at(self, rank: int) -> tuple[int, str]:
        if not self._store.check([f"at/{rank}"]):
            return -1, "nowhere"
        number, _, label = self._store.get(f"at/{rank}").decode().partition(" ")
        return int(number), label

    def _who(self, ranks: list[int]) -> str:
        return ", ".join(f"rank {rank} ({self._names[rank]})" for rank in ranks)

    def _abort(self, fault: SuiteFault) -> None:
        """The first fault is the one reported by all."""
        try:
            won = self._store.compare_set("abort", "", json.dumps(fault.as_json()))
            fault = SuiteFault.from_json(json.loads(won))
        except Exception as error:  # rank 0 has gone meanwhile: say what this rank knows
            print(f"the fault could not be passed on ({error})", file=sys.stderr)
        self._end(fault)

    def _see_report_out(self) -> None:
        """The first process to end has the launcher end the rest: rank 0 must have reported, and go last."""
        if self._rank == 0:
            self._store.set("reported", "")
            time.sleep(3)
            return
        until = time.monotonic() + _REPORT_PATIENCE
        while time.monotonic() < until and not self._store.check(["reported"]):
            time.sleep(0.1)

    def _end(self, fault: SuiteFault) -> None:
        if not self._ending.acquire(blocking=False):
            time.sleep(60)  # the other thread is ending the process already
        try:
            self._report(fault)
            sys.stdout.flush()
            sys.stderr.flush()
            self._see_report_out()
        finally:
            os._exit(ABORTED)
