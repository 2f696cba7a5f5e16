"""Starts a run's parts, waits for the first that ends, and restarts the run where `restart.decide` says so.

It knows neither processes nor Slurm: a Runner starts and ends the parts, a Site says what they are. The standard
library of Python 3.9 is all it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from megatron_empg.common.errors import EmpgError
from megatron_empg.launch.attempt import RunAttempt, Senses
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.parts import Runner, RunPart
from megatron_empg.launch.restart import (
    AttemptEnd,
    EndCause,
    RecordedStart,
    RestartAction,
    RestartDecision,
    RestartOptions,
    decide,
    decide_part,
    used_up,
)
from megatron_empg.launch.starts import note_start, read_starts
from megatron_empg.run.names import RunPaths

Stage = Sequence[RunPart]
"""Parts that start together. A stage is over when those of it that end have ended with status 0, or, where none of
them ends, when all are healthy; then the next one starts. After the last one the run is over."""


class StartRefused(EmpgError):
    """A Site cannot start the run; `code` says what is at fault. The supervisor makes a decision of it."""

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
        """Restarts after which the run is given up."""

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

    def means(self, end: AttemptEnd) -> RestartOptions:
        """What could be done after this end; all parts have been stopped."""

    def serving(self) -> None:
        """Called in each attempt when all that serve are healthy and the last stage has begun."""

    def look(self) -> None:
        """Called at each look at the parts, to show how far the run is."""

    def say(self, line: str) -> None:
        """A line for who watches the run."""


@dataclass
class Supervisor:
    """Makes attempts at a run until it is over. `token` is the run's, for /health."""

    site: Site
    runner: Runner
    token: str
    poll_seconds: float = 1.0
    senses: Senses = field(default_factory=Senses)
    _worked: frozenset[str] = frozenset()
    """Names of the parts that have worked in an attempt."""

    def run(self) -> RestartDecision:
        """Run until all is done, or until only others can help: DONE, REQUEUE or GIVE_UP with a code.

        No part runs when it returns or raises.
        """
        if self._history():  # a requeued job's
            spent = used_up(self._history(), self.site.checkpoint(), self.site.most_restarts)
            if spent:
                return RestartDecision(RestartAction.GIVE_UP, spent, ExitCode.RESTARTS)
        while True:
            note_start(self.site.run_folder, RecordedStart(self.site.job, self.site.checkpoint()))
            try:
                decision = self._make_attempt()
            except StartRefused as refused:
                return RestartDecision(RestartAction.GIVE_UP, str(refused), refused.code)
            finally:
                self.runner.stop()
            if decision.action is not RestartAction.RESTART_ALL:
                return decision
            self.site.say(decision.why)

    def _make_attempt(self) -> RestartDecision:
        """One stage after the other, until something ends that must not, or all is over."""
        stages = self.site.stages(len(self._history()))
        verdict = self.site.watchdog_verdict
        attempt = RunAttempt(self.runner, self.token, verdict, self.senses, worked_before=self._worked)
        for stage in stages:
            for part in stage:
                attempt.start(part)
            decision = self._wait_for(attempt, stage, last=stage is stages[-1])
            self._worked = attempt.names_of_workers()
            if decision:
                return decision
        cause = EndCause.FINISHED if self.site.finished() else EndCause.STOPPED
        return self._decide(attempt, AttemptEnd(cause, says="a signal came"))

    def _wait_for(self, attempt: RunAttempt, stage: Stage, *, last: bool) -> RestartDecision | None:
        """Until the stage is over (None), or what is to be done because something has ended."""
        serving = False
        while True:
            end = attempt.look()
            if end and last and attempt.has_ended_well(stage):
                return None  # the run was over when the other part ended
            if end:
                decision = self._decide(attempt, end)
                if decision.action is not RestartAction.RESTART_PART:
                    return decision
                self.site.say(decision.why)
                attempt.restart(end.part, self.site.checkpoint(), decision.wait)
            if last and not serving and attempt.all_healthy():
                serving = True
                self.site.serving()
            if attempt.is_over(stage):
                return None
            self.site.look()
            self.senses.sleep(self.poll_seconds)

    def _decide(self, attempt: RunAttempt, end: AttemptEnd) -> RestartDecision:
        """What is to be done; all parts have been stopped, unless the run goes on beside it."""
        again = decide_part(end, attempt.restarts_of(end.part), self.site.checkpoint(), self.site.most_restarts)
        if again:
            kept = self.runner.logs_kept_of(attempt.parts[end.part])
            return replace(again, why=f"{again.why}; logs in {kept}")
        if not end.of_watchdog_alone:
            self.runner.stop()  # before the site looks for nodes to go on with
        end = self._with_wishes(end)
        means = self.site.means(end)
        end = self._with_wishes(end)  # looking for nodes takes minutes
        decision = decide(end, self._history(), self.site.checkpoint(), means)
        if end.part and decision.action is RestartAction.RESTART_ALL:
            kept = self.runner.logs_kept_of(attempt.parts[end.part])
            return replace(decision, why=f"{decision.why}; logs in {kept}")
        if end.part and (decision.action is RestartAction.GIVE_UP or not decision.in_order):
            logs = self.runner.end_of_logs(attempt.parts[end.part])
            return replace(decision, logs=logs)
        return decision

    def _with_wishes(self, end: AttemptEnd) -> AttemptEnd:
        """The end, with what was asked for until now."""
        # In this order: a signal is noted before it makes the file.
        stop_file = RunPaths(self.site.run_folder).stop.exists()
        return replace(end, stop_file=stop_file, requested=self.site.asked_to_end())

    def _history(self) -> Sequence[RecordedStart]:
        return read_starts(self.site.run_folder, self.site.job)
