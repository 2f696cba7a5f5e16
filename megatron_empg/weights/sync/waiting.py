"""Waits for what other processes do, with a limit and an ear for news of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

POLL_SECONDS = 0.0005
NOT_THROUGH = "a weight transfer stood still"
"""What an error says of one whose limit was over; it says nothing of whose fault that was."""
PEER_LEFT = "has left the weight transfer"
"""The same of one that another rank has ended."""

Refused = Callable[[], None]
"""Asked while something is waited for; raises where a peer will not do its part."""


def nobody_refused() -> None:
    """Where there is no news of the peers."""


def wait_until(done: Callable[[], bool], limit: timedelta, refused: Refused = nobody_refused) -> None:
    """Until `done` says so. Raises RuntimeError when `limit` is over, and what `refused` raises."""
    until = time.monotonic() + limit.total_seconds()
    while not done():
        refused()
        if time.monotonic() > until:
            raise RuntimeError(f"{NOT_THROUGH} for {limit.total_seconds():.0f} s")
        time.sleep(POLL_SECONDS)
