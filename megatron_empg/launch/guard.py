"""A start anew when the node is lost on which the job's own script ran. Runs on another node of the job.

Under --no-kill Slurm itself does nothing then: the job would hold its other nodes until the time limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from megatron_empg.launch.slurm import Slurm

LOOK_SECONDS = 10.0


def guard(
    node: str, slurm: Slurm, say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> None:
    """Wait until `node` is lost, then requeue the job."""
    while node not in slurm.down():
        sleep(LOOK_SECONDS)
    say(f"lost {node}, where the job's script ran: requeueing job {slurm.job}")
    slurm.requeue(())
