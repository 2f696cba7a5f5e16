"""Starts a run's processes on this machine, watches over them, and ends them together.

Engines (vLLM servers), the driver and the trainer ranks (torchrun) are processes of their own, as on a cluster;
here one parent starts them. What they print goes to ``logs/``; the parent shows the steps as they are logged.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.log_ends import why
from megatron_empg.common.visible_gpus import VARIABLE, visible_gpus
from megatron_empg.launch.engine_process import free_port, start_engine
from megatron_empg.launch.environment_variables import trainer_environment
from megatron_empg.launch.interrupts import Interrupted, Interrupts
from megatron_empg.launch.service_check import check_services
from megatron_empg.recipe import Recipe, RecipeError, SftRecipe, load_recipe
from megatron_empg.recipe.check import check_recipe
from megatron_empg.recipe.identity import take_up
from megatron_empg.rollout.access import TOKEN_VARIABLE
from megatron_empg.rollout.service.client import wait_until_healthy
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.metrics import read_metrics
from megatron_empg.run.progress import Progress

POLL_SECONDS = 0.2


class LaunchError(EmpgError, RuntimeError):
    """A process of the run failed; the message holds the end of its log."""


@dataclass
class Child:
    """One started process and where it writes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


@dataclass
class Family:
    """The run's processes: one failing, or an interrupt, ends them all."""

    folder: RunFolder
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    children: list[Child] = field(default_factory=list)
    interrupts: Interrupts = field(default_factory=Interrupts)

    def start(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> Child:
        """Start a process with its output in ``logs/NAME.log``, and more `environment` than this process has."""
        log = self.folder.logs / f"{name}.log"
        # An interrupt in between would leave a process that nobody ends.
        with log.open("wb") as output, self.interrupts.held_back():
            # Its own session: a Ctrl-C in the terminal reaches the parent alone, which ends things in order.
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, TOKEN_VARIABLE: self.token, "PYTHONUNBUFFERED": "1", **(environment or {})},
                start_new_session=True,
            )
            return self.adopt(name, process, log)

    def adopt(self, name: str, process: subprocess.Popen[bytes], log: Path) -> Child:
        """Watch over a process that was started elsewhere."""
        self.children.append(Child(name, process, log))
        return self.children[-1]

    def check(self) -> None:
        """Raise LaunchError if a process has failed, or one that serves has gone."""
        for child in self.children:
            status = child.process.poll()
            if status is not None and (status != 0 or child.name != "trainer"):
                raise LaunchError(f"{child.name} ended with status {status}; {why(child.log)}")

    def stop(self, grace: float = 10.0) -> None:
        """End every process and its own children: asked first, then killed. No interrupt cuts it short."""
        self.interrupts.ignore()
        alive = [child.process for child in self.children if child.process.poll() is None]
        for process in alive:
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + grace
        for process in alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            _signal_group(process, signal.SIGKILL)  # one that ended in order may have left a child
            process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def processes_of(folder: RunFolder, *, goes_on: bool = True) -> Iterator[Family]:
    """The processes of a run that has taken up `folder`; they end, and give it free, with the block.

    An interrupt that ends the run ends this process too: with one line and the exit code of its signal. `goes_on`:
    the same command would continue the run.
    """
    family = Family(folder)
    try:
        with family.interrupts.handled():
            try:
                yield family
            finally:
                family.stop()
    except Interrupted as interrupted:
        further = f"; the same command goes on after step {folder.last_checkpoint()}" if goes_on else ""
        print(f"interrupted: all processes have ended{further}", file=sys.stderr)
        raise SystemExit(interrupted.code) from None
    finally:
        folder.close()


def launch_training(path: Path, overrides: list[str]) -> Path:
    """Train by a recipe on this machine; returns the report's path.

    Raises RecipeError before anything starts, LaunchError when a process fails.
    """
    recipe = load_recipe(path, overrides)
    check_recipe(recipe)
    check_machine(recipe)
    folder = take_up(recipe)
    if _told_finished(folder, recipe.run.steps):
        return _report(folder)
    with processes_of(folder) as family:
        try:
            urls = start_engines(recipe, family)
            driver = _start_driver(recipe, family, urls)
            engines = [word for url in urls for word in ("--engine", url)]
            trainer = _start_trainer(recipe, family, ["train", str(folder.recipe), "--driver", driver, *engines])
            _watch(family, trainer, recipe.run.steps, urls)
        finally:
            family.stop()
            if family.interrupts.training:
                _report(folder)
    return folder.report


def launch_sft(path: Path, overrides: list[str]) -> Path:
    """Supervised warm-up by a recipe on this machine; returns the policy's folder."""
    recipe = load_recipe(path, overrides, SftRecipe)
    check_recipe(recipe)
    check_machine(recipe)
    folder = take_up(recipe)
    if not _told_finished(folder, recipe.run.steps):
        with processes_of(folder) as family:
            trainer = _start_trainer(recipe, family, ["sft", str(folder.recipe)])
            _watch(family, trainer, recipe.run.steps)
    print(f"policy: {folder.policy}")
    return folder.policy


def _told_finished(folder: RunFolder, steps: int) -> bool:
    """Whether nothing is left to do; says so, and gives the folder free."""
    if not folder.finished(steps):
        return False
    folder.close()
    print(f"{folder.root} has finished its {steps} steps; raise run.steps or give another run.folder")
    return True


def check_machine(recipe: Recipe | SftRecipe, *, trains: bool = True) -> None:
    """Raise RecipeError unless this machine has the GPUs and the interface that the recipe wants, and the services
    that its environment names answer."""
    if isinstance(recipe, Recipe):
        try:
            free_port(recipe.engines.host)
        except OSError as error:
            raise RecipeError(
                f"engines.host is {recipe.engines.host!r}, which is no interface of this machine ({error}); "
                "127.0.0.1 is"
            ) from None
    _first_engine_gpu(recipe, trains=trains)
    check_services(recipe)


def start_engines(recipe: Recipe, family: Family, *, trains: bool = True) -> list[str]:
    """Start the recipe's engines; returns their URLs. If it `trains` too, their GPUs come after the trainer's."""
    settings = recipe.engines
    first_gpu = _first_engine_gpu(recipe, trains=trains)
    kv_cache = None if settings.kv_cache_gib is None else int(settings.kv_cache_gib * 2**30)
    urls = []
    for index in range(settings.count):
        name = f"engine_{index}"
        with family.interrupts.held_back():
            engine = start_engine(
                recipe.model.path,
                port=free_port(settings.host),
                token=family.token,
                log_path=family.folder.logs / f"{name}.log",
                max_model_len=recipe.rollout.max_episode_tokens,
                dtype=recipe.model.dtype,
                host=settings.host,
                kv_cache_bytes=kv_cache,
                max_num_seqs=min(1024, recipe.rollout.concurrency),
                tensor_parallel=settings.tensor_parallel,
                device_index=None if first_gpu is None else first_gpu + index * settings.tensor_parallel,
            )
            family.adopt(name, engine.process, engine.log_path)
        urls.append(engine.url)
    return urls


def _first_engine_gpu(recipe: Recipe | SftRecipe, *, trains: bool = True) -> int | None:
    """The engines' GPUs come after the trainer's, if it `trains`; None where there is no GPU. Raises RecipeError
    if there are too few."""
    import torch

    # Of those that CUDA_VISIBLE_DEVICES leaves visible, as everything here.
    present = torch.cuda.device_count()
    actor = recipe.actor.world_size if trains else 0
    engines = recipe.engines.count * recipe.engines.tensor_parallel if isinstance(recipe, Recipe) else 0
    if present and present < actor + engines:
        raise RecipeError(
            f"{present} GPUs of this machine are ours to use; the recipe needs {actor + engines}: {actor} for the "
            f"actor (actor.tensor_parallel x pipeline_parallel x context_parallel x data_parallel) and {engines} "
            "for the engines (engines.count x engines.tensor_parallel)"
        )
    return actor if present else None


def _start_driver(recipe: Recipe, family: Family, urls: list[str]) -> str:
    port = free_port()
    engines = [word for url in urls for word in ("--engine", url)]
    command = [sys.executable, "-m", "megatron_empg.launch.rollout_service", str(family.folder.recipe)]
    family.start("driver", [*command, "--port", str(port), *engines])
    return f"http://127.0.0.1:{port}"


def _start_trainer(recipe: Recipe | SftRecipe, family: Family, arguments: list[str]) -> Child:
    command = [
        *(sys.executable, "-m", "megatron_empg.launch.torchrun"),
        *("--nproc-per-node", str(recipe.actor.world_size), "--nnodes", "1"),
        *("--master-addr", "127.0.0.1", "--master-port", str(free_port())),
        *("-m", "megatron_empg.trainer.worker", *arguments),
    ]
    return family.start("trainer", command, _trainer_environment(recipe))


def _trainer_environment(recipe: Recipe | SftRecipe) -> dict[str, str]:
    """The variables of the step, and the first of the caller's GPUs."""
    import torch

    added = trainer_environment(os.environ)
    if torch.cuda.device_count():
        added[VARIABLE] = visible_gpus(0, recipe.actor.world_size, os.environ)
    return added


def _watch(family: Family, trainer: Child, total_steps: int, engines: Sequence[str] = ()) -> None:
    """Show steps as they are logged, until the trainer ends. `engines`: the URLs of those that it needs.

    Once they are there, the first interrupt asks the trainer to end in order.
    """
    records, size = read_metrics(family.folder), 0
    shown = max((record["step"] for record in records), default=-1)
    with Progress(total_steps, done=max(shown, 0)) as progress:
        progress.note(f"run folder {family.folder.root}; logs in {family.folder.logs}")
        if shown > 0:
            progress.note(f"continuing a run that has logged {shown} steps")
        # The trainer waits for them too, and says when it has been too long.
        wait_until_healthy(list(engines), family.token, timeout=math.inf, check=family.check)
        family.interrupts.train(family.folder.stop, progress.note)
        while True:
            ended = trainer.process.poll() is not None
            size, before = family.folder.metrics.stat().st_size if family.folder.metrics.exists() else 0, size
            records = read_metrics(family.folder) if size != before else records
            last = max((record["step"] for record in records), default=-1)
            shown = min(shown, last)  # a resumed run cuts away what it will do again
            for record in records:
                if record["step"] > shown:
                    progress.finish_step(record["step"], record)
            shown = last
            family.check()
            if ended:
                if shown < total_steps:
                    progress.note(
                        f"ended after step {shown} of {total_steps}; the same command goes on from there"
                    )
                return
            time.sleep(POLL_SECONDS)


def _report(folder: RunFolder) -> Path:
    from megatron_empg.report import write_report

    path = write_report(folder.root)
    print(f"report: {path}")
    return path
