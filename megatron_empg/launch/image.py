"""The package's own answers: a command of the Python in the image, on this node."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_empg.launch.containers import Container
from megatron_empg.launch.job_settings import JobSettings

NEEDED = ("pydantic", "transformers", "typer", "yaml")
"""Packages that the checks import."""


@dataclass(frozen=True)
class Image:
    """Where the package runs, and by which Python."""

    job: JobSettings
    container: Container

    def command(self, words: Sequence[str]) -> list[str]:
        """Python with these words. Pyxis runs an image in a step alone, so outside of a job there is none."""
        python = [self.job.python, *words]
        if self.container.in_srun and self.job.job:
            step = ("srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={self.job.own_node}")
            return [*step, *self.container.in_srun, *python]
        return [*self.container.in_task, *python]

    def run(self, words: Sequence[str]) -> int:
        """The exit status; what it prints goes where the job's own output goes."""
        sys.stdout.flush()
        try:
            return subprocess.run(self.command(words), stdin=subprocess.DEVNULL, check=False).returncode
        except OSError:
            return 127

    def answer(self, words: Sequence[str]) -> str | None:
        """The last line that it prints which is not empty; None where it fails.

        What it says on stderr stands in the job's output.
        """
        sys.stdout.flush()
        try:
            done = subprocess.run(
                self.command(words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",  # libraries may print what they like before the answer
                check=False,
            )
        except OSError:
            return None
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        if done.returncode != 0 or not lines:
            return None
        return lines[-1]

    def has_packages(self) -> bool:
        """Whether that Python has what the checks import."""
        find = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {NEEDED!r})))"
        return self.run(["-c", find]) == 0
