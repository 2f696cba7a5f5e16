"""How many episodes of those that are played at this moment are over, for who watches the run.

The rollout service writes it to the run folder while it plays, as the trainer's ranks write their heartbeats.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_empg.common.files import put_json
from megatron_empg.run.names import RunPaths

INTERVAL = 1.0
"""Seconds between two writes."""
FIRST_QUESTIONS = "first questions"
"""What is played before the first evaluation, to see that there is something to learn from."""


def evaluation_pass(split: str, *, greedy: bool) -> str:
    """What one pass of an evaluation plays.

    Example: evaluation_pass("test_id", greedy=True) is "test_id, greedy"
    """
    decoding = "sampled"
    if greedy:
        decoding = "greedy"
    return f"{split}, {decoding}"


@dataclass
class Playing:
    """`done` of `total` episodes are over. `what`: FIRST_QUESTIONS, or as `evaluation_pass` says it."""

    what: str
    total: int
    done: int = 0

    def one_more(self, _: object = None) -> None:
        """An episode is over."""
        self.done += 1


@contextmanager
def told_while_playing(run_folder: Path, what: str, total: int) -> Iterator[Playing]:
    """A count of the episodes that are over, which a thread writes down until the block ends.

    Nothing is written where there is no trainer's heartbeat: it is no run.
    """
    playing, over = Playing(what, total), threading.Event()
    path = RunPaths(run_folder).playing

    def write() -> None:
        while not over.is_set():
            if path.parent.is_dir():
                with suppress(OSError):  # a full disk must not end the rollout; the next write tries again
                    put_json(path, asdict(playing), durable=False)
            over.wait(INTERVAL)

    thread = threading.Thread(target=write, name="playing", daemon=True)
    thread.start()
    try:
        yield playing
    finally:
        over.set()
        thread.join(INTERVAL)  # a disk that hangs must not hold the rollout
        with suppress(OSError):
            path.unlink(missing_ok=True)


def read_playing(run_folder: Path) -> Playing | None:
    """What is played at this moment; None while nothing is, or where it cannot be read."""
    try:
        return Playing(**json.loads(RunPaths(run_folder).playing.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None  # being replaced, or left from another version
