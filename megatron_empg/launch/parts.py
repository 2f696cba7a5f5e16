"""What a run is made of while it runs: parts, each a command as one or more tasks, and how one of them ended."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from megatron_empg.common.errors import LASTING_FAULT
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.liveness import LivenessProbe


@dataclass(frozen=True)
class RunPart:
    """One kind of process of a run.

    `nodes` are names of Slurm's, none on one machine. Every task has the same command and environment; what
    differs between the tasks of a part follows from the node and the number of the task there (SLURMD_NODENAME,
    SLURM_LOCALID). Secrets are in `environment` alone.

    Example: RunPart("driver", ("python", "-m", "…driver", "…"), ExitCode.DRIVER, addresses=("http://10.0.0.5:10001",))
    """

    name: str
    command: Sequence[str]
    code: ExitCode
    """With which the run ends when this part fails for good."""
    nodes: Sequence[str] = ()
    tasks_per_node: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    ends: bool = False
    """Whether it ends by itself when all is done, as the trainer does; the others serve until they are stopped."""
    addresses: Sequence[str] = ()
    """URLs of a part that serves: it is healthy once each has answered GET /health."""
    start_seconds: float = math.inf
    """How long it may take until it is healthy."""
    probes: Sequence[LivenessProbe] = ()
    """What each address must go on answering once it was healthy; nobody asks where there is none."""
    heartbeat: str = ""
    """The file in which a trainer's rank 0 says what it does: past the phase "start" it has begun to work."""


@dataclass(frozen=True)
class EndedPart:
    """A part that has ended. `status` is its exit status, negative for a signal's number as subprocess has it.

    Of several tasks: LASTING_FAULT if any ended so, else the first that is not 0.
    """

    part: RunPart
    status: int
    unanswered: str = ""
    """Which request it leaves unanswered, and, where known, for how long ("/weight_info for 120 s"): the part
    has not ended, but it is frozen, or an engine's core is. Empty for a part that ended."""

    @property
    def by_signal(self) -> bool:
        """Whether a signal ended it."""
        return self.status < 0

    def __str__(self) -> str:
        if self.unanswered:
            return f"{self.part.name} answers no more (no answer to {self.unanswered})"
        if self.by_signal:
            return f"{self.part.name} was ended by {signal_name(-self.status)}"
        if self.status == LASTING_FAULT:
            return f"{self.part.name} ended by its own error"
        return f"{self.part.name} ended with status {self.status}"


def status_of(code: int) -> int:
    """An exit status as subprocess has it: what a shell, srun and torchrun say as 128 + N is the signal -N."""
    return 128 - code if 128 < code < 128 + signal.NSIG else code


def signal_name(number: int) -> str:
    """Example: signal_name(9) is "SIGKILL"."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Runner(Protocol):
    """Starts parts and ends them: processes of this machine, or steps of a Slurm job."""

    def start(self, part: RunPart) -> None:
        """Start the part's tasks and return at once; their output goes to the run's logs."""

    def ended(self) -> EndedPart | None:
        """One that has ended and was not told yet, in any order; None while all others run."""

    def lost_nodes(self, *, ask_each: bool = False) -> Sequence[str]:
        """Nodes of the run that no longer answer; none on one machine.

        It is asked every few seconds, and must be cheap then; `ask_each`: something has ended, so each node is
        asked, which may take half a minute.
        """

    def end_of_logs(self, part: RunPart) -> str:
        """The first error in the part's logs and their ends, to be shown."""

    def logs_kept_of(self, part: RunPart) -> str:
        """Where the part's logs are once the run was started again, for people."""

    def stop_part(self, part: RunPart) -> None:
        """End that part alone with all its children, at once: it may be frozen. Nothing for one that is over."""

    def stop(self) -> None:
        """End every part with all its children, asked first, then killed. May be called again."""
