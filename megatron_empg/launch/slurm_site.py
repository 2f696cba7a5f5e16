"""A run as a Slurm job, as the supervisor sees it: its nodes, its steps, and what the watchdog said."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.job_error import JobError
from megatron_empg.launch.job_nodes import JobNodes
from megatron_empg.launch.job_settings import JobSettings, TrainSettings
from megatron_empg.launch.job_signals import JobSignals
from megatron_empg.launch.nodes import unfit_nodes
from megatron_empg.launch.parts import RunPart
from megatron_empg.launch.placement import NodeShares, Placement
from megatron_empg.launch.recipe_questions import RecipeQuestions
from megatron_empg.launch.restart import AttemptEnd, EndCause, RestartOptions
from megatron_empg.launch.run_plan import RunPlan
from megatron_empg.launch.slurm_parts import SlurmParts, variables
from megatron_empg.launch.srun_runner import SrunRunner
from megatron_empg.launch.supervisor import StartRefused
from megatron_empg.run.checkpoint_folders import last_step
from megatron_empg.run.folder_lock import FolderLock, RunFolderError
from megatron_empg.run.names import RunPaths

LOOK_AGAIN_SECONDS = 2.0
GOES_ON = (EndCause.DIED, EndCause.LOST_NODE, EndCause.UNFIT_NODE)
"""After these a run may go on in the same job, with the nodes that are left."""


@dataclass
class SlurmSite:
    """`shares` and `placement`: how the nodes are shared out, and which they are now."""

    settings: JobSettings
    training: TrainSettings
    plan: RunPlan
    shares: NodeShares
    nodes: JobNodes
    runner: SrunRunner
    questions: RecipeQuestions
    signals: JobSignals
    token: str
    say: Callable[[str], None]
    placement: Placement | None = None
    _addresses: dict[str, str] = field(default_factory=dict)
    _lock: FolderLock = field(default_factory=FolderLock)
    _parts: SlurmParts | None = None
    _preflight_told: bool = False

    @property
    def job(self) -> str:
        return self.settings.job

    @property
    def run_folder(self) -> Path:
        return Path(self.plan.run_folder)

    @property
    def paths(self) -> RunPaths:
        """Paths in the run folder."""
        return RunPaths(self.run_folder)

    @property
    def most_restarts(self) -> int:
        return self.training.most_restarts

    def choose_nodes(self, without: Sequence[str] = ()) -> bool:
        """Nodes for every role, of those that are up and fit, less some; whether there are enough.

        Raises JobError for a node without an address that the others reach.
        """
        self.placement = self.nodes.choose(self.shares, {*self.unfit(), *without})
        if self.placement is None:
            return False
        self._addresses = self.nodes.addresses(self.placement)
        self.runner.nodes = self.placement.nodes
        trainers, rollouts = " ".join(self.placement.trainers), self.placement.rollout_words
        addresses = " ".join(f"{node}={address}" for node, address in self._addresses.items())
        ports = self.settings.ports_from
        self.say(f"trainer on {trainers}; rollout on {rollouts}; addresses {addresses}; ports from {ports}")
        return True

    def unfit(self) -> list[str]:
        """Nodes that this job is to go on without, as the watchdog has noted."""
        try:
            text = self.paths.bad_nodes.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return unfit_nodes(text, self.job)

    # --- a start -----------------------------------------------------------------------------------------------

    def stages(self, number: int) -> Sequence[Sequence[RunPart]]:
        """Take the run folder, then name what is to run. Raises StartRefused."""
        try:
            self._parts = self._prepare(number)
        except JobError as error:
            raise StartRefused(error.exit_code, str(error)) from None
        except RunFolderError as error:
            raise StartRefused(ExitCode.CONFIGURATION, str(error)) from None
        self._start_guard()
        return self._parts.stages()

    def _prepare(self, number: int) -> SlurmParts:
        """The resolved recipe in the run folder, and this job its only one.

        Raises JobError, RunFolderError when another process trains there.
        """
        logs = self.paths.logs / f"{self.job}.{number}"
        self.say(f"attempt {number}: from step {self.checkpoint()}; logs in {logs}")
        assert self.placement is not None, "nodes are chosen before a start"
        parts = self._parts_for(self.plan, logs)
        self._lock.release()  # the image takes it for as long as it writes
        self.plan = self.questions.prepare(parts)
        self._lock.take(self.run_folder)
        parts = self._parts_for(self.plan, logs)
        shutil.rmtree(self.paths.heartbeats, ignore_errors=True)
        logs.mkdir(parents=True, exist_ok=True)
        self.paths.flight_recorder.mkdir(exist_ok=True)
        (logs / "plan.json").write_text(self.plan.to_json() + "\n", encoding="utf-8")
        if self.signals.asked:
            self.paths.stop.touch()  # the signal came before the folder was ready for it
        self.runner.logs = logs
        self.runner.environment.update(variables(parts, self.token))
        self._preflight_told = not self.training.preflight
        return parts

    def _parts_for(self, plan: RunPlan, logs: Path) -> SlurmParts:
        assert self.placement is not None
        return SlurmParts(self.settings, self.training, plan, self.placement, self._addresses, str(logs))

    def _start_guard(self) -> None:
        """On a node other than this one, where the job's own script runs: whose loss nobody else would see."""
        assert self.placement is not None
        others = [node for node in self.placement.nodes if node != self.settings.own_node]
        if others:
            script = f"{self.settings.home}/slurm/job.sh"
            log = str(self.runner.logs / "guard.log")
            self.runner.start_beside("guard", others[0], ["bash", script, "guard", self.settings.own_node, log])

    # --- while it runs -----------------------------------------------------------------------------------------

    def look(self) -> None:
        """Tell of preflight's verdict once it is over, and of a guard that is no more."""
        for name in self.runner.ended_beside():
            log = self.runner.logs / f"{name}.srun"
            self.say(
                f"the {name} has ended; the run goes on without it, but if {self.settings.own_node} is lost, "
                f"nobody requeues this job. {log} says why. It needs a Python of 3.9 or newer on every node "
                "(EMPG_HOST_PYTHON)"
            )
        if self._preflight_told or "preflight" not in self.runner.over:
            return
        self._preflight_told = True
        for line in self._lines("preflight", r"preflight: \S.*")[:1]:
            self.say(line)

    def serving(self) -> None:
        """Tell where the environment's services are."""
        assert self._parts is not None
        for name, url in self._parts.services.items():
            self.say(f"{name} service of {self.plan.environment} at {url}: healthy")

    def checkpoint(self) -> int:
        return last_step(self.paths.checkpoints)

    def finished(self) -> bool:
        return self.questions.plan().finished

    def asked_to_end(self) -> bool:
        return self.signals.asked

    # --- after its end -----------------------------------------------------------------------------------------

    def watchdog_verdict(self) -> AttemptEnd | None:
        """What its log says: a GPU that makes its node unfit, or ranks that hang."""
        lines = self._lines("watchdog", r"watchdog: (hanging|unfit).*")
        if not lines:
            return None
        unfit = any(line.startswith("watchdog: unfit") for line in lines)
        cause = EndCause.UNFIT_NODE if unfit else EndCause.HUNG
        return AttemptEnd(cause, "", ExitCode.WATCHDOG, self.signals.asked, "\n".join(lines))

    def means(self, end: AttemptEnd) -> RestartOptions:
        """Whether enough nodes are left, which then are the ones to go on with."""
        enough = True
        if end.cause in GOES_ON and not end.requested:
            lost = list(self.runner.lost) if end.cause is EndCause.LOST_NODE else []
            enough = self._choose_without(lost)
        return RestartOptions(nodes=enough, requeue=True, most_restarts=self.most_restarts)

    def _choose_without(self, lost: Sequence[str]) -> bool:
        """Other nodes in the place of those that are lost or unfit. Raises JobError."""
        before = self.placement
        if lost:
            self._wait_until_slurm_knows()
        silent = self.nodes.slurm.silent([node for node in lost if node not in self.nodes.slurm.down()])
        if not self.choose_nodes(without=silent):
            return False
        assert before is not None
        assert self.placement is not None
        gone = [node for node in before.nodes if node not in self.placement.nodes]
        if gone:
            self.say(f"going on without {' '.join(gone)}")
        return True

    def _wait_until_slurm_knows(self) -> None:
        """It would else give the job the lost node again."""
        until = time.monotonic() + self.training.node_timeout
        while not self.nodes.slurm.down() and time.monotonic() < until:
            time.sleep(LOOK_AGAIN_SECONDS)

    def _lines(self, name: str, pattern: str) -> list[str]:
        """Those of a part's logs that match as a whole."""
        found = []
        for path in sorted(self.runner.logs.glob(f"{name}.*.log")):
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [line for line in text.splitlines() if re.fullmatch(pattern, line)]
        return found
