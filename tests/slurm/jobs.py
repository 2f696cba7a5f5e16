"""Tiny runs of slurm/deepsearch_32b.sh on CPU: what is overridden, and what a run leaves."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.slurm.cluster import Cluster, Job, read_jsonl

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "slurm/deepsearch_32b.sh"
STAND_INS = ROOT / "tests/slurm/stand_ins"
"""For what a test machine lacks: Pyxis, Apptainer, NVML."""
SECONDS = 300
"""How long one start of a job may take on a machine that does little else."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def patience(seconds: float) -> float:
    """The same on this machine, as busy as it is now."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


VARIABLES = {
    "EMPG_HOME": str(ROOT), "EMPG_RECIPE": "recipes/quickstart.yaml", "EMPG_DEVICE": "cpu",
    "EMPG_TRAINER_NODES": "2", "EMPG_ROLLOUT_NODES": "1", "EMPG_ENGINES_PER_NODE": "2",
    "EMPG_PREFLIGHT": "0", "EMPG_NODE_TIMEOUT": "60", "EMPG_MINIATURE": "1",
}  # fmt: skip
OVERRIDES = {
    "run.steps": 3, "run.checkpoint_every": 1, "rollout.groups": 4, "rollout.group_size": 4,
    "algorithm.max_generation_rounds": 1, "algorithm.kl_to_initial_every": 0, "engines.kv_cache_gib": 0.125,
    "evaluation.questions": 8, "evaluation.every": 0, "evaluation.greedy": "false",
    "evaluation.splits": "[test_id]",
}  # fmt: skip


@dataclass
class Run:
    """One job and its run folder."""

    cluster: Cluster
    scratch: Path
    variables: dict[str, str] = field(default_factory=dict)
    overrides: dict[str, object] = field(default_factory=dict)
    options: tuple[str, ...] = ("--nodes=3", "--gpus-per-node=1", "--signal=B:USR1@60")
    script: str = SCRIPT
    first_words: tuple[str, ...] = ()
    """Before the keys."""
    number: int = 0

    @property
    def folder(self) -> Path:
        return self.scratch / "run"

    def submit(self) -> None:
        words = [f"{key}={value}" for key, value in (OVERRIDES | self.overrides).items()]
        # Other simulated clusters on this machine number their jobs, and so their ports, alike.
        ports = str(random.randrange(10_000, 32_000, 128))
        variables = VARIABLES | {"EMPG_RUN_FOLDER": str(self.folder), "EMPG_BASE_PORT": ports} | self.variables
        output = self.cluster.run(
            "sbatch", "--parsable", f"--output={self.scratch}/job.out", *self.options, str(ROOT / self.script),
            *self.first_words, *words, **{name: value for name, value in variables.items() if value},
        )  # fmt: skip
        self.number = int(output.strip())

    def end(self, timeout: float = SECONDS) -> Job:
        """The job once it has ended for good; its output is shown when a test fails."""
        try:
            return self.cluster.wait(self.number, timeout=patience(timeout))
        finally:
            print(self.output)

    @property
    def output(self) -> str:
        path = self.scratch / "job.out"
        return path.read_text() if path.exists() else ""

    @property
    def metrics(self) -> list[dict[str, float]]:
        return read_jsonl(self.folder / "metrics.jsonl")

    def steps(self) -> list[int]:
        return [int(record["step"]) for record in self.metrics]

    def starts(self) -> list[int]:
        """The checkpoint that each start went on from."""
        path = self.folder / "starts"
        return [int(line.split()[1]) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, what: str, seen: Callable[[], object], timeout: float = SECONDS) -> None:
        deadline = time.monotonic() + patience(timeout)
        while not seen():
            state = self.cluster.job(self.number).state
            if state in ENDED or time.monotonic() > deadline:
                raise AssertionError(f"{what}: not seen; the job is {state}:\n{self.output}")
            time.sleep(0.3)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(f"step {step}", lambda: step in self.steps())

    def processes(self, module: str) -> list[tuple[int, dict[str, str], str]]:
        """(pid, environment, command line) of the job's tasks that run a module."""
        return self.processes_with(f"-m {module} ")

    def sruns(self, part: str) -> list[tuple[int, dict[str, str], str]]:
        """Those of a part's step."""
        return [found for found in self.processes_with(f"--job-name={part} ") if found[2].startswith("srun ")]

    def processes_with(self, words: str) -> list[tuple[int, dict[str, str], str]]:
        """The job's that have these words in their command line."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if words in command:
                    pairs = (folder / "environ").read_bytes().decode().split("\0")
                    variables = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
                    ours = variables.get("SLURM_CONF") == self.cluster.environment["SLURM_CONF"]
                    if ours and variables.get("SLURM_JOB_ID") == str(self.number):
                        found.append((int(folder.name), variables, command))
        return found


def ranks(run: Run) -> list[tuple[int, dict[str, str], str]]:
    """The trainer's, without the torchrun that started them, whose words are the same."""
    return [found for found in run.processes("megatron_empg.trainer.worker") if "RANK" in found[1]]


COMPARED = {"train/reward", "train/episodes", "policy/entropy", "policy/grad_norm", "policy/loss"}


def assert_inside(run: Run, references: list[Run]) -> int:
    """Each step's metrics lie between those of undisturbed runs, but for rounding. Returns the steps compared."""
    rows = list(zip(run.metrics[1:], *(reference.metrics[1:] for reference in references), strict=False))
    assert rows[0][0].keys() >= COMPARED
    for ours, *theirs in rows:
        keys = ours.keys() & COMPARED  # without the policy's where all groups of a step were filtered away
        assert all(other["step"] == ours["step"] and other.keys() & COMPARED == keys for other in theirs)
        for key in keys:
            values = [other[key] for other in theirs]
            rounding = 1e-3 * abs(ours[key]) + 1e-5
            assert min(values) - rounding <= ours[key] <= max(values) + rounding, (ours["step"], key, values)
    return len(rows)


def signal_all(processes: list[tuple[int, dict[str, str], str]], number: int) -> None:
    for pid, _, _ in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
