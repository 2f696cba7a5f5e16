"""What a run is made of while it runs: parts, each a command as one or more tasks, and how one of them ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from megatron_empg.launch.exit_codes import ExitCode


@dataclass(frozen=True)
class Part:
    """One kind of process of a run.

    `nodes` are names of Slurm's, none on one machine. Every task has the same command and environment; what differs
    between the tasks of a part follows from the node and the number of the task there (SLURMD_NODENAME,
    SLURM_LOCALID). Secrets are in `environment` alone.

    Example: Part("driver", ("python", "-m", "…driver", "…"), ExitCode.DRIVER, nodes=("node5",))
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


@dataclass(frozen=True)
class Ended:
    """A part that has ended. `status` is its exit status, negative for a signal's number as subprocess has it."""

    part: Part
    status: int


class Runner(Protocol):
    """Starts parts and ends them: processes of this machine, or steps of a Slurm job."""

    def start(self, part: Part) -> None:
        """Start the part's tasks and return at once; their output goes to the run's logs."""

    def ended(self) -> Ended | None:
        """One that has ended since it was asked last, the likelier cause first; None while all run."""

    def lost_nodes(self) -> Sequence[str]:
        """Nodes of the run that no longer answer, as cheaply as it can be asked; none on one machine."""

    def end_of_logs(self, part: Part) -> str:
        """The first error in the part's logs and their ends, to be shown."""

    def stop(self) -> None:
        """End every part with all its children, asked first, then killed. May be called again."""
