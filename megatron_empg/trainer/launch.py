"""Starts a run's processes on this machine, watches over them, and ends them together.

Engines (vLLM servers), the driver and the trainer ranks (torchrun) are processes of their own, as on a cluster;
here one parent starts them. What they print goes to ``logs/``; the parent shows the steps as they are logged.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_empg.recipe import Recipe, RecipeError, SftRecipe, dump_recipe, load_recipe
from megatron_empg.trainer.progress import Progress
from megatron_empg.trainer.run_folder import RunFolder

TOKEN_VARIABLE = "EMPG_TOKEN"


class LaunchError(RuntimeError):
    """A process of the run failed; the message holds the end of its log."""


@dataclass
class Child:
    """One started process and where it writes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 25) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@dataclass
class Family:
    """The run's processes: one failing, or an interrupt, ends them all."""

    folder: RunFolder
    environment: dict[str, str]
    children: list[Child] = field(default_factory=list)

    def start(self, name: str, command: list[str]) -> Child:
        """Start a process with its output in ``logs/NAME.log`` (appended: attempts follow each other)."""
        log = self.folder.logs / f"{name}.log"
        with log.open("ab") as output:
            # Its own session: a Ctrl-C in the terminal reaches the parent alone, which ends things in order.
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def check(self) -> None:
        """Raise LaunchError if a process has failed, or one that serves has gone."""
        for child in self.children:
            status = child.process.poll()
            if status is not None and (status != 0 or child.name != "trainer"):
                raise LaunchError(f"{child.name} ended with status {status}; end of {child.log}:\n{child.tail()}")

    def stop(self, grace: float = 10.0) -> None:
        """End every process: asked first, then killed."""
        alive = [child.process for child in self.children if child.process.poll() is None]
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        for process in alive:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((host, 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
