"""Parts of a run as steps of a Slurm job, side by side: a Runner."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_empg.common.errors import LASTING_FAULT
from megatron_empg.common.log_ends import first_error
from megatron_empg.launch.containers import Container
from megatron_empg.launch.parts import EndedPart, RunPart, status_of
from megatron_empg.launch.slurm import Slurm
from megatron_empg.launch.slurm_words import task_statuses

STOP_SECONDS = 40.0
"""Until srun must have ended after its step was cancelled; Slurm itself kills tasks that do not obey."""
TERM_SECONDS = 10.0
"""Until it must have ended after it was asked to: an srun that is killed leaves its step behind."""
LOOK_AGAIN_SECONDS = 2.0
"""Between two questions to Slurm whether a step is gone whose srun is."""
SHOWN_LINES = 15
LONGEST = 1000
"""Of a log's end, and characters of an error."""


@dataclass
class _Step:
    part: RunPart
    process: subprocess.Popen[bytes]
    log: Path
    """What srun itself says."""


def srun_command(part: RunPart, container: Container, *, binds_processors: bool = False) -> list[str]:
    """The step of a part: an equal number of tasks on each of its nodes, beside the other steps.

    One task that fails ends the others.
    """
    tasks = len(part.nodes) * part.tasks_per_node
    command = ["srun", "--overlap", f"--job-name={part.name}", "--kill-on-bad-exit=1"]
    if binds_processors:
        command.append("--cpu-bind=none")
    command += [f"--nodes={len(part.nodes)}", f"--ntasks={tasks}", f"--ntasks-per-node={part.tasks_per_node}"]
    command.append(f"--nodelist={','.join(part.nodes)}")
    return [*command, *container.in_srun, *container.in_task, *part.command]


def status_of_step(code: int, said: str) -> int:
    """The status that speaks for a step whose srun ended with `code` and `said` what became of its tasks.

    A lasting fault of any task, else that of the task which failed first: srun's own may be one of those that were
    killed then.
    """
    statuses = [status for _, status in task_statuses(said)]
    if LASTING_FAULT in statuses or code == LASTING_FAULT:
        return LASTING_FAULT
    first = statuses[0] if code != 0 and statuses else code
    return status_of(first)


class SrunRunner:
    """`environment` is of every step; `logs` is where each task writes NAME.NODE.TASK.log, and srun NAME.srun;
    of a part that is started again srun writes NAME.2.srun."""

    def __init__(
        self,
        slurm: Slurm,
        container: Container,
        environment: Mapping[str, str],
        *,
        binds_processors: bool = False,
    ) -> None:
        self.slurm, self._container, self._binds = slurm, container, binds_processors
        self.environment: dict[str, str] = dict(environment)
        self.logs = Path()
        self.nodes: Sequence[str] = ()
        """Of the run, without spares."""
        self.lost: Sequence[str] = ()
        """Those of them that did not answer when it was asked last."""
        self.over: set[str] = set()
        """Names of parts whose end was told since all were stopped."""
        self._steps: dict[str, _Step] = {}
        self._beside: dict[str, subprocess.Popen[bytes]] = {}
        self._told: set[str] = set()
        """Names of steps beside the parts whose end was told."""
        self._may_run = False
        """Whether anything was started since all were stopped."""

    def start(self, part: RunPart) -> None:
        """Start the part's step and return at once."""
        command = srun_command(part, self._container, binds_processors=self._binds)
        environment = {**self.environment, **part.environment, "EMPG_LOG": str(self.logs / part.name)}
        log = self._new_srun_log(part)
        self._may_run = True
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self._steps[part.name] = _Step(part, process, log)

    def start_beside(self, name: str, node: str, command: Sequence[str]) -> None:
        """A step on one node, outside of the image, whose end ends nothing; it ends with the parts."""
        step = ("srun", "--overlap", f"--job-name={name}", "--nodes=1", "--ntasks=1", f"--nodelist={node}")
        self._may_run = True
        with (self.logs / f"{name}.srun").open("wb") as output:
            process = subprocess.Popen(
                [*step, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )
        self._beside[name] = process

    def ended_beside(self) -> Sequence[str]:
        """Names of steps beside the parts that have ended by themselves; each is told once."""
        found = []
        for name, process in self._beside.items():
            if name not in self._told and process.poll() is not None:
                self._told.add(name)
                found.append(name)
        return found

    def run(self, part: RunPart) -> int:
        """Start the part and wait for its end; its status, negative for a signal."""
        self.start(part)
        self._steps[part.name].process.wait()
        ended = self.ended()
        assert ended is not None
        return ended.status

    def log_of(self, part: RunPart, node: str) -> str:
        """What the part's first task on that node wrote."""
        return _text(self.logs / f"{part.name}.{node}.0.log")

    def ended(self) -> EndedPart | None:
        """One whose step is over, and was not told yet."""
        for name, step in self._steps.items():
            code = step.process.poll()
            if code is not None:
                del self._steps[name]
                self.over.add(name)
                said = _text(step.log)
                return EndedPart(step.part, status_of_step(code, said))
        return None

    def lost_nodes(self, *, ask_each: bool = False) -> Sequence[str]:
        """Those of the run that Slurm has given up; `ask_each`: or on which nothing starts."""
        down = self.slurm.down()
        lost = [node for node in self.nodes if node in down]
        if ask_each:
            others = [node for node in self.nodes if node not in down]
            lost += self.slurm.silent(others)
        self.lost = tuple(lost)
        return self.lost

    def end_of_logs(self, part: RunPart) -> str:
        """The first error of each of its logs as it stands there, then their ends."""
        paths = sorted(self.logs.glob(f"{part.name}.*.log"))
        paths += [path for path in self._srun_logs(part) if _text(path)]
        errors, ends = [], []
        for path in paths:
            text = _text(path)
            line = line_of_error(text)
            if line:
                errors.append(f"{path}:{line}")
            ends += [f"==> {path} <==", *text.splitlines()[-SHOWN_LINES:]]
        return "\n".join([*errors, *ends])

    def logs_kept_of(self, part: RunPart) -> str:
        """Each start has a folder of its own, where they stay."""
        return str(self.logs / f"{part.name}.*.log")

    def stop_part(self, part: RunPart) -> None:
        """Cancel the part's step; Slurm kills tasks that do not obey, as frozen ones."""
        step = self._steps.get(part.name)
        if step is None:
            self._end_what_its_srun_left(part)
            return
        self._cancel_steps_of(part)
        if _end([step.process]):
            self._cancel_steps_of(part)
        del self._steps[part.name]

    def stop(self) -> None:
        """Cancel every step of the job, then end what is left of srun.

        A signal that ends the job may come in here: what was started is forgotten last, so that the next call does
        all of it again.
        """
        if not self._may_run:
            return
        processes = [*(step.process for step in self._steps.values()), *self._beside.values()]
        self._cancel_steps()
        if _end(processes):
            self._cancel_steps()  # those that it left behind
        self._steps, self._beside = {}, {}
        self._told, self.over = set(), set()
        self._may_run = False

    def _cancel_steps(self) -> None:
        for step in self.slurm.steps():
            self.slurm.cancel(step)

    def _cancel_steps_of(self, part: RunPart) -> None:
        for step in self.slurm.steps_of(part.name):
            self.slurm.cancel(step)

    def _end_what_its_srun_left(self, part: RunPart) -> None:
        """Tasks live on whose srun was killed, and hold ports and GPUs of their successors until they end."""
        for _ in range(int(STOP_SECONDS / LOOK_AGAIN_SECONDS)):
            left = self.slurm.steps_of(part.name)
            if not left:
                return
            for step in left:
                self.slurm.cancel(step)
            self.slurm.sleep(LOOK_AGAIN_SECONDS)

    def _srun_logs(self, part: RunPart) -> Sequence[Path]:
        """One for each time that the part was started, oldest first."""
        found = [self.logs / f"{part.name}.srun"]
        while found[-1].exists():
            found.append(self.logs / f"{part.name}.{len(found) + 1}.srun")
        return found[:-1]

    def _new_srun_log(self, part: RunPart) -> Path:
        number = len(self._srun_logs(part)) + 1
        return self.logs / (f"{part.name}.srun" if number == 1 else f"{part.name}.{number}.srun")


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Wait for sruns whose steps were cancelled, and end those that stay; whether any had to be killed."""
    left = _still_running(processes, STOP_SECONDS)
    for process in left:
        process.terminate()
    left = _still_running(left, TERM_SECONDS)
    for process in left:
        process.kill()
        process.wait()
    return bool(left)


def _still_running(
    processes: Sequence[subprocess.Popen[bytes]], seconds: float
) -> Sequence[subprocess.Popen[bytes]]:
    """Those that have not ended within so many seconds."""
    until = time.monotonic() + seconds
    left = []
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            left.append(process)
    return left


def line_of_error(text: str) -> str:
    """The whole line of a log's first error, with what a logger puts before it; "" without one."""
    error = first_error(text)
    if error is None:
        return ""
    for line in text.splitlines():
        if error in line:
            return line[:LONGEST]
    return error


def _text(path: Path) -> str:
    """Of a log; "" where none is."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
