"""Trainer ranks as threads of a test, for what needs no torch.distributed."""

import threading
from collections.abc import Callable
from typing import Any

LIMIT = 60.0
"""Seconds that a rank may wait for another."""


class ThreadRanks:
    """A thread as one of the ranks."""

    def __init__(self, rank: int, meeting: threading.Barrier, table: list[Any]) -> None:
        self.rank, self._meeting, self._table = rank, meeting, table

    def gathered(self, value: Any) -> list[Any]:
        self._table[self.rank] = value
        self._meeting.wait(LIMIT)
        found = list(self._table)
        self._meeting.wait(LIMIT)
        return found


def on_ranks(work: Callable[[ThreadRanks], Any], count: int) -> list[Any]:
    """What each rank returned or raised."""
    meeting, table, results = threading.Barrier(count), [None] * count, [None] * count

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, meeting, table))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LIMIT)
        assert not thread.is_alive(), "a rank waits for ever"
    return results
