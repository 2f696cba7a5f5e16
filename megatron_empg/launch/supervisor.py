"""Starts a run's parts, waits for the first that ends, and restarts the run where `restart.decide` says so.

It knows neither processes nor Slurm: a Runner starts and ends the parts, a Site says what they are. The standard
library of Python 3.9 is all it needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from megatron_empg.common.errors import LASTING_FAULT
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.health import has_begun, healthy
from megatron_empg.launch.parts import Ended, Part, Runner
from megatron_empg.launch.restart import Action, AttemptEnd, Cause, Decision, Means, Start, decide, used_up
from megatron_empg.launch.starts import note_start, read_starts

Stage = Sequence[Part]
"""Parts that start together. A stage is over when those of it that end have ended with status 0, or, where none of
them ends, when all are healthy; then the next one starts. After the last one the run is over."""

LIKELIER_CAUSES = (ExitCode.SERVICE, ExitCode.ENGINES, ExitCode.DRIVER, ExitCode.WATCHDOG, ExitCode.TRAINER)
"""When several parts end, the first of these is why the others did."""
LOOK_FOR_CAUSE_SECONDS = 2.0
"""A trainer may fail of an engine's death before that is seen."""
LOOK_FOR_NODES_SECONDS = 15.0


class StartRefused(Exception):
    """A Site cannot start the run; `code` says what is at fault."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Site(Protocol):
    """Where a run goes on: this machine, or a Slurm job with its nodes."""

    @property
    def job(self) -> str:
        """The first word of this run's lines in RUN/starts."""

    @property
    def run_folder(self) -> Path:
        """RUN."""

    @property
    def most_restarts(self) -> int:
        """After which the run is given up."""

    def stages(self, number: int) -> Sequence[Stage]:
        """What start `number` (1 is the first) runs, after all that must be done before. Raises StartRefused."""

    def checkpoint(self) -> int:
        """The step of the newest checkpoint; 0 without one."""

    def finished(self) -> bool:
        """Whether all steps are done, once a trainer has ended well."""

    def asked_to_end(self) -> bool:
        """Whether a signal has asked for the end of the run."""

    def watchdog_verdict(self) -> AttemptEnd | None:
        """HUNG or UNFIT_NODE, if that is what the watchdog ended with."""

    def means(self, end: AttemptEnd) -> Means:
        """What could be done after this end; all parts have been stopped."""

    def serving(self) -> None:
        """Called in each attempt when all that serve are healthy and the last stage has begun."""

    def look(self) -> None:
        """Called at each look at the parts, to show how far the run is."""

    def say(self, line: str) -> None:
        """A line for who watches the run."""


@dataclass
class Supervisor:
    """Runs attempts at a run until it is over. `token` is the run's, for /health."""

    site: Site
    runner: Runner
    token: str
    poll_seconds: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    is_healthy: Callable[[str, str], bool] = healthy
    _attempt: _Attempt = field(init=False)

    def run(self) -> Decision:
        """Train until all is done, or until only others can help: DONE, REQUEUE or GIVE_UP with a code.

        No part runs when it returns or raises.
        """
        if self._history():  # a requeued job's
            spent = used_up(self._history(), self.site.checkpoint(), self.site.most_restarts)
            if spent:
                return Decision(Action.GIVE_UP, spent, ExitCode.RESTARTS)
        while True:
            note_start(self.site.run_folder, Start(self.site.job, self.site.checkpoint()))
            try:
                decision = self._make_attempt()
            except StartRefused as refused:
                return Decision(Action.GIVE_UP, str(refused), refused.code)
            finally:
                self.runner.stop()
            if decision.action is not Action.RESTART_ALL:
                return decision
            self.site.say(decision.why)

    def _make_attempt(self) -> Decision:
        stages = self.site.stages(len(self._history()))
        self._attempt = _Attempt(self.clock)
        for stage in stages:
            last = stage is stages[-1]
            for part in stage:
                self._start(part)
            decision = self._wait_for(stage, last=last)
            if decision:
                return decision
        cause = Cause.FINISHED if self.site.finished() else Cause.STOPPED
        return self._decide(AttemptEnd(cause, requested=self.site.asked_to_end(), says="a signal came"))

    def _start(self, part: Part) -> None:
        if part.heartbeat:
            _remove(part.heartbeat)  # an earlier attempt's, whose rank was killed
        self._attempt.note_start(part)
        self.runner.start(part)

    def _wait_for(self, stage: Stage, *, last: bool) -> Decision | None:
        """Until the stage is over, or until something ends that must not: then what is to be done."""
        told = not last
        while True:
            end = self._first_end()
            if end:
                decision = self._decide(end)
                if decision.action is not Action.RESTART_PART:
                    return decision
                self.site.say(decision.why)
                self._restart(end.part)
            if not told and all(self._serves(part) for part in self._attempt.parts.values()):
                told = True
                self.site.serving()
            if self._is_over(stage):
                return None
            self.site.look()
            self.sleep(self.poll_seconds)

    def _is_over(self, stage: Stage) -> bool:
        ending = [part for part in stage if part.ends]
        if ending:
            return all(part.name in self._attempt.done for part in ending)
        return all(self._serves(part) for part in stage)

    # --- what has ended, and why -------------------------------------------------------------------------------

    def _first_end(self) -> AttemptEnd | None:
        """How the attempt ends now; None while it goes on."""
        ended = self._new_ends()
        if ended:
            return self._explain(ended)
        for part in self._attempt.parts.values():
            if not self._serves(part) and self._attempt.seconds(part) > part.start_seconds:
                return self._end(
                    Cause.FAULT, part, f"{part.name} was not healthy after {part.start_seconds:.0f} s"
                )
        if self._attempt.is_time_for_nodes():
            lost = self.runner.lost_nodes()
            if lost:
                return self._lost(lost)
        return None

    def _new_ends(self) -> list[Ended]:
        """Those that have ended since the last look, but for those that were to end and did so well."""
        found = []
        ended = self.runner.ended()
        while ended:
            if ended.part.ends and ended.status == 0:
                self._attempt.done.add(ended.part.name)
            else:
                found.append(ended)
            ended = self.runner.ended()
        return found

    def _explain(self, ended: list[Ended]) -> AttemptEnd:
        """Why the attempt ends: a lost node before the watchdog's word, that before the part that ended first."""
        lost = self.runner.lost_nodes(ask_each=True)
        if lost:
            return self._lost(lost)
        first = self._likeliest(ended)
        verdict = self.site.watchdog_verdict()
        if verdict and first.part.code is ExitCode.WATCHDOG:
            return verdict
        cause = Cause.FAULT if self._would_come_again(first) else Cause.DIED
        return self._end(cause, first.part, str(first))

    def _likeliest(self, ended: list[Ended]) -> Ended:
        """Who ended first in truth: what follows from an engine's death may be seen before it."""
        until = self.clock() + LOOK_FOR_CAUSE_SECONDS
        follows = {ExitCode.DRIVER, ExitCode.TRAINER}
        while all(one.part.code in follows for one in ended) and self.clock() < until:
            self.sleep(min(self.poll_seconds, 0.2))
            ended = ended + self._new_ends()
        if all(one.part.code in follows for one in ended):
            ended = ended + self._silent()
        return min(ended, key=_likelihood)

    def _silent(self) -> list[Ended]:
        """Engines and services that were healthy and no longer are, though their processes live: they count as
        killed."""
        found = []
        for part in self._attempt.parts.values():
            serves = part.code in (ExitCode.ENGINES, ExitCode.SERVICE) and part.name in self._attempt.healthy
            if serves and not all(self.is_healthy(url, self.token) for url in part.addresses):
                found.append(Ended(part, _KILLED))
        return found

    def _would_come_again(self, ended: Ended) -> bool:
        """Whether the same would happen after a restart."""
        part = ended.part
        if part.code in (ExitCode.PREFLIGHT, ExitCode.CONVERSION) or ended.status == LASTING_FAULT:
            return True
        if ended.by_signal or ended.status == 0:
            return False
        return part.code is ExitCode.WATCHDOG or not self._has_worked(part)

    # --- what the parts are at ---------------------------------------------------------------------------------

    def _serves(self, part: Part) -> bool:
        """Whether it has been healthy in this attempt; one without an address needs no proof."""
        if part.name in self._attempt.healthy:
            return True
        asked = self._attempt.answered.setdefault(part.name, [])
        for url in part.addresses[len(asked) :]:
            if not self.is_healthy(url, self.token):
                return False
            asked.append(url)
        self._attempt.healthy.add(part.name)
        return True

    def _has_worked(self, part: Part) -> bool:
        if part.heartbeat:
            return has_begun(part.heartbeat)
        return part.name in self._attempt.healthy

    # --- small things ------------------------------------------------------------------------------------------

    def _lost(self, nodes: Sequence[str]) -> AttemptEnd:
        requested = self.site.asked_to_end()
        return AttemptEnd(Cause.LOST_NODE, "", ExitCode.NODE, requested, f"lost {' '.join(nodes)}")

    def _end(self, cause: Cause, part: Part, says: str) -> AttemptEnd:
        restarts = self._attempt.restarts.get(part.name, 0)
        return AttemptEnd(cause, part.name, part.code, self.site.asked_to_end(), says, restarts)

    def _decide(self, end: AttemptEnd) -> Decision:
        if not end.of_watchdog_alone:
            self.runner.stop()  # before the site looks for nodes to go on with
        decision = decide(end, self._history(), self.site.checkpoint(), self.site.means(end))
        if decision.action is Action.GIVE_UP and end.part:
            return replace(decision, logs=self.runner.end_of_logs(self._attempt.parts[end.part]))
        return decision

    def _restart(self, name: str) -> None:
        self._attempt.restarts[name] = self._attempt.restarts.get(name, 0) + 1
        self._start(self._attempt.parts[name])

    def _history(self) -> Sequence[Start]:
        return read_starts(self.site.run_folder, self.site.job)


class _Attempt:
    """What is known of the parts of one attempt, by their names."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._nodes_at = clock() + LOOK_FOR_NODES_SECONDS
        self._started: dict[str, float] = {}
        self.parts: dict[str, Part] = {}
        self.answered: dict[str, list[str]] = {}
        """URLs that have been healthy."""
        self.healthy: set[str] = set()
        self.done: set[str] = set()
        self.restarts: dict[str, int] = {}

    def note_start(self, part: Part) -> None:
        self.parts[part.name] = part
        self._started[part.name] = self._clock()

    def seconds(self, part: Part) -> float:
        """Since it was started."""
        return self._clock() - self._started[part.name]

    def is_time_for_nodes(self) -> bool:
        """Every so many seconds."""
        now = self._clock()
        if now < self._nodes_at:
            return False
        self._nodes_at = now + LOOK_FOR_NODES_SECONDS
        return True


_KILLED = -9


def _likelihood(ended: Ended) -> int:
    code = ended.part.code
    return LIKELIER_CAUSES.index(code) if code in LIKELIER_CAUSES else -1


def _remove(path: str) -> None:
    try:
        Path(path).unlink()
    except FileNotFoundError:
        return
