"""Whether a run whose part has ended goes on, and how: a table, without any process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from megatron_empg.common.errors import EmpgError
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.run.names import WHOLE_NUMBER

MOST_RESTARTS_VARIABLE = "EMPG_MAX_RESTARTS"
MOST_RESTARTS = 20
MOST_FROM_ONE_CHECKPOINT = 3
"""Starts from one checkpoint after which the run is given up: the third has brought no newer one either."""

MOST_PART_RESTARTS = 5
"""Restarts of one part alone from one checkpoint on, after which everything is started again in its place."""
LONGEST_WAIT = 60.0
"""Seconds before a part is started again, at most."""
ALONE = (ExitCode.ENGINES, ExitCode.SERVICE, ExitCode.DRIVER)
"""Parts that are started again alone, since what the others hold is enough to go on with."""


class RestartsError(EmpgError, ValueError):
    """The variable that bounds restarts holds no number."""

    exit_code = 2


class EndCause(Enum):
    """Why an attempt ended."""

    FINISHED = "finished"  # all steps are done
    STOPPED = "stopped"  # by a signal or the file STOP, after a whole step
    DIED = "died"  # a process was killed, or crashed after all had begun to work
    FAULT = "fault"  # it would happen again: one of the project's errors, or a process that was never healthy
    HUNG = "hung"  # the watchdog named a rank
    UNFIT_NODE = "unfit node"  # the watchdog named a GPU
    LOST_NODE = "lost node"


class RestartAction(Enum):
    """What to do then."""

    DONE = "done"
    RESTART_PART = "restart the part"
    RESTART_ALL = "restart everything from the newest checkpoint"
    REQUEUE = "requeue the job"
    GIVE_UP = "give up"


@dataclass(frozen=True)
class RecordedStart:
    """A line of RUN/starts: which job (or process) began from which checkpoint."""

    job: str
    checkpoint: int


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended.

    `part` is "" where no part is at fault; `code` is what the job would end with; `says` is for people.
    `requested`: a signal asked for the end, so where there is a queue the run goes on at its next turn.
    `stop_file`: the file STOP is there; without a signal somebody made it who wants the run to end for now.
    `part_restarts`: how often this part alone was restarted in this attempt. `alone`: every other part goes on,
    and the part has worked in this attempt, so that it may be started again beside them.
    """

    cause: EndCause
    part: str = ""
    code: ExitCode = ExitCode.TRAINER
    requested: bool = False
    says: str = ""
    part_restarts: int = 0
    stop_file: bool = False
    alone: bool = False

    @property
    def of_watchdog_alone(self) -> bool:
        """The watchdog was killed; nothing else waits for it."""
        return self.cause is EndCause.DIED and self.code is ExitCode.WATCHDOG


@dataclass(frozen=True)
class RestartOptions:
    """What could be done. `nodes`: whether enough are left, up and fit; `requeue`: whether there is a queue."""

    nodes: bool = True
    requeue: bool = False
    most_restarts: int = MOST_RESTARTS


@dataclass(frozen=True)
class RestartDecision:
    """What is done, in words for the log too. Of a run that is given up: `code`, and the end of the logs of the
    part at fault.

    `in_order`: False of a run that is DONE since its end was asked for, after a part of it died: what it trained
    since the newest checkpoint is lost, and `logs` are as above.
    `wait`: seconds before a part is started again.
    """

    action: RestartAction
    why: str
    code: ExitCode | None = None
    logs: str = ""
    in_order: bool = True
    wait: float = 0.0


def most_restarts(environment: Mapping[str, str]) -> int:
    """The limit of restarts that EMPG_MAX_RESTARTS sets. Raises RestartsError."""
    given = environment.get(MOST_RESTARTS_VARIABLE, "")
    if not given:
        return MOST_RESTARTS
    if not WHOLE_NUMBER.fullmatch(given):
        raise RestartsError(f"{MOST_RESTARTS_VARIABLE} is {given[:40]!r}; set it to a number of 0 or more")
    return int(given)


def decide(
    end: AttemptEnd, history: Sequence[RecordedStart], checkpoint: int, means: RestartOptions
) -> RestartDecision:
    """`history`: the starts of this job so far, the last one that which ended. `checkpoint`: the newest now."""
    if end.cause is EndCause.FINISHED:
        return RestartDecision(RestartAction.DONE, "all steps are done")
    if end.cause is EndCause.FAULT:
        return RestartDecision(RestartAction.GIVE_UP, end.says, end.code)
    if end.of_watchdog_alone:
        return _watchdog_again(end, means)
    if end.cause is EndCause.STOPPED and not end.requested:
        return RestartDecision(RestartAction.DONE, f"stopped after step {checkpoint}")
    if (end.requested and not means.requeue) or (end.stop_file and not end.requested):
        why = f"{end.says}; not started again, as its end was asked for; newest checkpoint: step {checkpoint}"
        return RestartDecision(RestartAction.DONE, why, in_order=end.cause is EndCause.STOPPED)

    spent = used_up(history, checkpoint, means.most_restarts)
    if spent:
        return RestartDecision(RestartAction.GIVE_UP, f"{end.says}; {spent}", ExitCode.RESTARTS)
    # A hanging rank may hold its GPU or its node; a new start of the job has both anew.
    if means.requeue and (end.requested or end.cause is EndCause.HUNG):
        return RestartDecision(RestartAction.REQUEUE, f"{end.says}; newest checkpoint: step {checkpoint}")
    if means.nodes:
        number = f"restart {len(history)} of at most {means.most_restarts}"
        return RestartDecision(
            RestartAction.RESTART_ALL, f"{end.says}; going on from step {checkpoint} ({number})"
        )
    if means.requeue:
        return RestartDecision(
            RestartAction.REQUEUE, f"{end.says}; too few nodes are left; newest checkpoint: {checkpoint}"
        )
    return RestartDecision(
        RestartAction.GIVE_UP, f"{end.says}; too few nodes are left, and there is no queue", ExitCode.NODE
    )


def _watchdog_again(end: AttemptEnd, means: RestartOptions) -> RestartDecision:
    if end.part_restarts < means.most_restarts:
        return RestartDecision(RestartAction.RESTART_PART, f"{end.says}; it is started again, the run goes on")
    return RestartDecision(
        RestartAction.GIVE_UP, f"{end.says}, after {end.part_restarts} restarts of it", ExitCode.WATCHDOG
    )


def decide_part(end: AttemptEnd, restarts: Sequence[int], checkpoint: int, most: int) -> RestartDecision | None:
    """Whether the part that ended is started again alone; None where the whole run's end is to be decided.

    `restarts`: the newest checkpoint at each earlier restart of that part in this attempt; `most` of them there
    may be in all, and `MOST_PART_RESTARTS` without a new checkpoint.
    """
    if not end.alone or end.cause is not EndCause.DIED or end.code not in ALONE:
        return None
    in_vain = sum(at == checkpoint for at in restarts)
    if in_vain >= MOST_PART_RESTARTS or len(restarts) >= most:
        return None
    wait = wait_before(in_vain)
    number = f"restart {len(restarts) + 1} of it"
    why = f"{end.says}; it alone is started again in {wait:.0f} s ({number}), the run goes on"
    return RestartDecision(RestartAction.RESTART_PART, why, wait=wait)


def wait_before(in_vain: int) -> float:
    """Seconds before a part is started again that was so often in vain: 1, 2, 4 and so on to `LONGEST_WAIT`."""
    return min(LONGEST_WAIT, 2.0 ** min(in_vain, 10))


def used_up(history: Sequence[RecordedStart], checkpoint: int, most_restarts: int) -> str:
    """Why a job with these starts may not start again from this checkpoint; "" when it may."""
    if len(history) > most_restarts:
        return f"restarted {most_restarts} times (EMPG_MAX_RESTARTS): giving up"
    last = list(history[-MOST_FROM_ONE_CHECKPOINT:])
    if len(last) == MOST_FROM_ONE_CHECKPOINT and all(start.checkpoint == checkpoint for start in last):
        return f"two restarts brought no checkpoint after step {checkpoint}: giving up"
    return ""
