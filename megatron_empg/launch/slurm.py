"""Slurm asked and told, by its own programs; what they answer is read by `slurm_words`."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from megatron_empg.launch import slurm_words
from megatron_empg.launch.nodes import KnownNode

RETRIES = (2.0, 5.0)
"""Seconds before a program is called again: Slurm's clients lose their connection now and then."""
SILENCE_SECONDS = 20.0
"""In which something must have started on a node that answers."""


@dataclass(frozen=True)
class ProgramOutput:
    """A program's exit status, and what it wrote to stdout."""

    status: int
    text: str


def call(command: Sequence[str], seconds: float) -> ProgramOutput:
    """Run a program to its end; a status of 124 where it takes longer, of 127 where there is none of that name."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
        )
    except OSError:
        return ProgramOutput(127, "")
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return ProgramOutput(124, "")
    return ProgramOutput(process.returncode, text)


def _end(process: subprocess.Popen[str]) -> None:
    """Asked first: an srun that is killed leaves its step behind."""
    process.terminate()
    try:
        process.communicate(timeout=5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class Slurm:
    """One job's view of Slurm. `nodes` as SLURM_JOB_NODELIST has them: "gpu[3-10]"."""

    job: str = ""
    nodes: str = ""
    run: Callable[[Sequence[str], float], ProgramOutput] = call
    sleep: Callable[[float], None] = field(default=time.sleep)

    def _ask(self, *command: str, seconds: float = 60.0) -> ProgramOutput:
        return self.run(command, seconds)

    def _again(self, *command: str) -> ProgramOutput:
        """Until it succeeds, three times at most."""
        answer = self._ask(*command)
        for seconds in RETRIES:
            if answer.status == 0:
                break
            self.sleep(seconds)
            answer = self._ask(*command)
        return answer

    # --- nodes -------------------------------------------------------------------------------------------------

    def node_names(self) -> list[str]:
        """The job's, in Slurm's order."""
        return slurm_words.lines(self._again("scontrol", "show", "hostnames", self.nodes).text)

    def down(self) -> set[str]:
        """The job's nodes that the controller has given up."""
        answer = self._ask("sinfo", "--noheader", "--Node", f"--nodes={self.nodes}", "--format=%N %t")
        return slurm_words.down_nodes(answer.text)

    def known(self, node: str) -> KnownNode:
        """What Slurm knows of a node's whereabouts."""
        line = self._again("scontrol", "show", "node", node, "--oneliner").text
        return KnownNode(node, slurm_words.field(line, "NodeAddr"), slurm_words.field(line, "NodeHostName"))

    def silent(self, nodes: Sequence[str]) -> list[str]:
        """Those of the nodes on which nothing starts within `SILENCE_SECONDS`."""
        if not nodes:
            return []
        with ThreadPoolExecutor(len(nodes)) as pool:
            answers = list(pool.map(lambda node: self.output_on(node, "true", seconds=SILENCE_SECONDS), nodes))
        return [node for node, answer in zip(nodes, answers) if answer.status != 0]  # noqa: B905 (Python 3.9)

    def output_on(self, node: str, *command: str, seconds: float = 120.0) -> ProgramOutput:
        """What a command prints that runs there as a step of its own."""
        where = ("--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}")
        return self._ask("srun", *where, *command, seconds=seconds)

    # --- the job -----------------------------------------------------------------------------------------------

    def steps(self) -> list[str]:
        """Numbers of the job's steps that srun started and that run still."""
        answer = self._again("squeue", "--noheader", "--steps", f"--jobs={self.job}", "--format=%i")
        return slurm_words.step_ids(answer.text)

    def steps_of(self, part: str) -> list[str]:
        """Those of them that were started under this name."""
        answer = self._again("squeue", "--noheader", "--steps", f"--jobs={self.job}", "--format=%i %j")
        return slurm_words.steps_named(answer.text, part)

    def cancel(self, step: str) -> None:
        """End a step; Slurm kills what does not obey."""
        self._ask("scancel", step)

    def excluded(self) -> str:
        """The nodes that the job is to be kept off, as Slurm writes them."""
        line = self._again("scontrol", "show", "job", self.job, "--oneliner").text
        return slurm_words.field(line, "ExcNodeList")

    def requeue(self, without: Sequence[str]) -> bool:
        """A new start of this job, on other nodes than those. Whether Slurm agreed.

        Only a job that waits can be told which nodes to leave out.
        """
        given = self.excluded()
        if self._again("scontrol", "requeue", self.job).status != 0:
            return False
        if without:
            names = [*without, given] if given else without
            self._again("scontrol", "update", f"JobId={self.job}", f"ExcNodeList={','.join(names)}")
        return True

    # --- the installation --------------------------------------------------------------------------------------

    def binds_processors(self) -> bool:
        """Whether tasks would be bound to processors."""
        return slurm_words.binds_processors(self._ask("scontrol", "show", "config").text)

    def has_pyxis(self) -> bool:
        """Whether srun runs images by itself."""
        return slurm_words.has_container_options(self._ask("srun", "--help").text)


def ipv4_addresses(name: str) -> list[str]:
    """Those that a name resolves to on this machine; none for an unknown one."""
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(address[0]) for *_, address in found]
