"""The parts of a run as steps of a Slurm job: pure functions of the plan, the placement and the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_empg.common.token_access import RUN_TOKEN
from megatron_empg.launch import commands
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.job_settings import JobSettings, TrainSettings
from megatron_empg.launch.liveness import engine_probes, server_probes
from megatron_empg.launch.parts import RunPart
from megatron_empg.launch.placement import Placement
from megatron_empg.launch.ports import Ports
from megatron_empg.launch.run_plan import RunPlan
from megatron_empg.run.names import RunPaths

NODE_TASK = "megatron_empg.launch.node_task"
SERVICE_SECONDS = 300.0
"""Until a service of the environment must be healthy."""


@dataclass(frozen=True)
class SlurmParts:
    """Makes them. `addresses` by node; `logs` is the folder of this start's logs, with plan.json in it."""

    job: JobSettings
    training: TrainSettings
    plan: RunPlan
    placement: Placement
    addresses: Mapping[str, str]
    logs: str

    @property
    def ports(self) -> Ports:
        return Ports(self.job.ports_from)

    @property
    def services(self) -> dict[str, str]:
        """URL by name of each that the job starts, all on the first rollout node."""
        found = {}
        for index, service in enumerate(self.plan.services):
            host = self.addresses[self.placement.rollouts[0]]
            found[service.name] = commands.url_of(host, self.ports.service(index))
        return found

    @property
    def engines(self) -> list[str]:
        """Their URLs, node by node."""
        found: list[str] = []
        for node in self.placement.rollouts:
            for _ in range(self.placement.shares.engines_per_node):
                found.append(commands.url_of(self.addresses[node], self.ports.engine(len(found))))
        return found

    def stages(self) -> list[list[RunPart]]:
        """Stages of a start, in order: conversion, preflight, services, and the run itself."""
        found = []
        if self.training.megatron_checkpoint:
            found.append([self._conversion()])
        if self.training.preflight:
            found.append([self._preflight()])
        if self.plan.services:
            found.append(self._services())
        if self.plan.engines:
            found.append([*self._engines(), self._driver(), self._trainer(), self._watchdog()])
        else:
            found.append([self._trainer(), self._watchdog()])
        return found

    def _conversion(self) -> RunPart:
        """A Megatron checkpoint becomes the run's model, once."""
        target = str(RunPaths(self.plan.run_folder).converted_model)
        source, like = self.training.megatron_checkpoint, self.training.model
        command = self._run(commands.conversion(self.job.python, source, target, like))
        return RunPart("conversion", command, ExitCode.CONVERSION, self.placement.trainers[:1], ends=True)

    def _preflight(self) -> RunPart:
        """Is every node fit for the run?"""
        ports = self.ports
        command = commands.preflight(
            self.job.python,
            self.plan,
            0 if self.training.shape.cpu else self.training.shape.gpus_per_node,
            ports.beside_preflight(len(self.engines)),
            f"{self.logs}/preflight.json",
            self.training.preflight_arguments,
        )
        meeting = {
            "MASTER_ADDR": self.addresses[self.placement.trainers[0]],
            "MASTER_PORT": str(ports.preflight),
        }
        nodes = self.placement.nodes
        return RunPart("preflight", self._run(command), ExitCode.PREFLIGHT, nodes, environment=meeting, ends=True)

    def _services(self) -> list[RunPart]:
        node = self.placement.rollouts[0]
        urls = self.services
        found = []
        for index, service in enumerate(self.plan.services):
            command = commands.service(self.job.python, service, self.addresses[node], self.ports.service(index))
            found.append(
                RunPart(
                    service.name,
                    self._run(command, "--no-gpu"),
                    ExitCode.SERVICE,
                    (node,),
                    addresses=(urls[service.name],),
                    start_seconds=SERVICE_SECONDS,
                    probes=server_probes(self.plan.silence_seconds),
                )
            )
        return found

    def _engines(self) -> list[RunPart]:
        """A step for each, so that one which dies ends no other and is started again alone."""
        shares = self.placement.shares
        words = ["--per-node", str(shares.engines_per_node), *self._gpus()]
        if shares.first_engine_gpu:
            words += ["--first-gpu", str(shares.first_engine_gpu)]
        probes = engine_probes(self.plan.silence_seconds, self.plan.core_silence_seconds)
        found = []
        for index, url in enumerate(self.engines):
            node, number = divmod(index, shares.engines_per_node)
            found.append(
                RunPart(
                    f"engine_{index}",
                    self._task("engine", self._plan_file, "--number", str(number), *words),
                    ExitCode.ENGINES,
                    (self.placement.rollouts[node],),
                    addresses=(url,),
                    start_seconds=self.plan.engine_start_seconds,
                    probes=probes,
                )
            )
        return found

    def _driver(self) -> RunPart:
        node = self.placement.rollouts[0]
        host, port = self.addresses[node], self.ports.driver
        command = commands.driver(self.job.python, self.plan, host, port, self.engines)
        return RunPart(
            "driver",
            self._run(command, "--no-gpu"),
            ExitCode.DRIVER,
            (node,),
            addresses=(commands.url_of(host, port),),
            probes=server_probes(self.plan.silence_seconds),
        )

    def _trainer(self) -> RunPart:
        words = [self._plan_file, *self._gpus()]
        if self.plan.engines:
            driver = commands.url_of(self.addresses[self.placement.rollouts[0]], self.ports.driver)
            words += ["--driver", driver, *commands.engine_words(self.engines)]
        return RunPart(
            "trainer",
            self._task("trainer", *words),
            ExitCode.TRAINER,
            self.placement.trainers,
            ends=True,
            heartbeat=commands.heartbeat_of(self.plan),
        )

    def _watchdog(self) -> RunPart:
        stall, silence = self.training.stall_seconds, self.training.silence_seconds
        command = commands.watchdog(self.job.python, self.plan, stall, silence)
        return RunPart("watchdog", self._run(command, "--no-gpu"), ExitCode.WATCHDOG, self.placement.nodes)

    @property
    def _plan_file(self) -> str:
        return f"{self.logs}/plan.json"

    def _gpus(self) -> Sequence[str]:
        shape = self.training.shape
        return () if shape.cpu else ("--gpus-per-node", str(shape.gpus_per_node))

    def _run(self, command: Sequence[str], *options: str) -> tuple[str, ...]:
        return self._task("run", *options, "--", *command)

    def _task(self, *words: str) -> tuple[str, ...]:
        return task_command(self.job.python, *words)


def task_command(python: str, *words: str) -> tuple[str, ...]:
    """A command under the variables of its node (`node_task`)."""
    return (python, "-m", NODE_TASK, *words)


def variables(parts: SlurmParts, token: str) -> dict[str, str]:
    """What every step of the run has in its environment; the token nowhere else."""
    placement, ports = parts.placement, parts.ports
    found = {
        **placement_variables(placement, parts.addresses),
        "EMPG_BASE_PORT": str(ports.base),
        "EMPG_WEIGHTS_PORT": str(ports.weights),  # where the trainer's rank 0 and the engines meet
        "EMPG_RUN_FOLDER": parts.plan.run_folder,
        RUN_TOKEN: token,
        "PYTHONUNBUFFERED": "1",
    }
    for service in parts.plan.services:
        found[service.token_variable] = token
    return found


def placement_variables(placement: Placement, addresses: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that tell a task its node's role and address."""
    return {
        "EMPG_TRAINER_NODE_NAMES": " ".join(placement.trainers),
        "EMPG_ROLLOUT_NODE_NAMES": " ".join(placement.rollouts),
        "EMPG_ADDRESSES": " ".join(f"{node}={address}" for node, address in addresses.items()),
    }
