"""Whether a run whose part has ended goes on, and how: a table, without any process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from megatron_empg.launch.exit_codes import ExitCode


class Cause(Enum):
    """Why an attempt ended."""

    FINISHED = "finished"  # all steps are done
    STOPPED = "stopped"  # by a signal or the file STOP, after a whole step
    DIED = "died"  # a process was killed or crashed after all had begun to work
    FAULT = "fault"  # it would happen again: one of the project's errors, or a process that never became healthy
    HUNG = "hung"  # the watchdog named a rank
    UNFIT_NODE = "unfit node"  # the watchdog named a GPU
    LOST_NODE = "lost node"


class Action(Enum):
    """What to do then."""

    DONE = "done"
    RESTART_PART = "restart the part"
    RESTART_ALL = "restart everything from the newest checkpoint"
    REQUEUE = "requeue the job"
    GIVE_UP = "give up"


@dataclass(frozen=True)
class Start:
    """A line of RUN/starts: which job (or process) began from which checkpoint."""

    job: str
    checkpoint: int


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended. `part` is "" where no part is at fault; `code` is what the job would end with.

    `requested`: a signal asked for the end, so the job is to be started again on its next turn.
    """

    cause: Cause
    part: str = ""
    code: ExitCode = ExitCode.TRAINER
    requested: bool = False


@dataclass(frozen=True)
class Means:
    """What could be done. `nodes`: whether enough are left, up and fit; `requeue`: whether there is a queue."""

    nodes: bool = True
    requeue: bool = False
    most_restarts: int = 20


@dataclass(frozen=True)
class Decision:
    """What is done, in words for the log too; `code` of a run that is given up."""

    action: Action
    why: str
    code: ExitCode | None = None


def decide(end: AttemptEnd, history: Sequence[Start], checkpoint: int, means: Means) -> Decision:
    """`history`: the starts of this job so far, the last one that which ended. `checkpoint`: the newest now."""
    raise NotImplementedError
