"""What each task of a job step does first, inside the image: its log, its node's variables, then its own command.

    python -m megatron_empg.launch.node_task run [--no-gpu] -- COMMAND …
    python -m megatron_empg.launch.node_task engine PLAN --number 1 --per-node 2 [--gpus-per-node 8 --first-gpu 4]
    python -m megatron_empg.launch.node_task trainer PLAN --driver URL --engine URL …

PLAN is the file that the job wrote (`run_plan`). Which task it is follows from Slurm's variables; addresses, ports
and roles come from the job, in EMPG_ADDRESSES ("node1=10.0.0.1 …"), EMPG_BASE_PORT, EMPG_TRAINER_NODE_NAMES and
EMPG_ROLLOUT_NODE_NAMES; the name of its log begins with EMPG_LOG.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from megatron_empg.common.errors import EmpgError, told_to_the_launcher
from megatron_empg.common.options import plain_app
from megatron_empg.common.visible_gpus import VARIABLE, visible_gpus
from megatron_empg.launch import commands
from megatron_empg.launch.environment_variables import trainer_environment
from megatron_empg.launch.node_environment import added, described, pairs, read_node, task_variables
from megatron_empg.launch.ports import Ports
from megatron_empg.launch.run_plan import RunPlan


class TaskError(EmpgError, RuntimeError):
    """This task cannot run on its node; the message says what to change."""


class LogError(TaskError):
    """This task's log cannot be opened now; a shared file system may hold it again later."""

    accident = True


def _variable(environment: Mapping[str, str], name: str) -> str:
    """A variable that Slurm or the job sets. Raises TaskError."""
    if name not in environment:
        raise TaskError(f"{name} is not set: start tasks by the job's srun, which sets it")
    return environment[name]


def engine_command(
    plan: RunPlan,
    environment: Mapping[str, str],
    *,
    number: int,
    per_node: int,
    gpus_per_node: int | None,
    first_gpu: int = 0,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The engine of that `number` on this node, and what is added to its environment: its place among the rollout
    nodes gives the port, its place on the node the GPUs, from `first_gpu` on.

    `gpus_per_node` None is a run without GPUs. Raises TaskError when too few GPUs are left for the engine.
    """
    node = _variable(environment, "SLURMD_NODENAME")
    nodes = _variable(environment, "EMPG_ROLLOUT_NODE_NAMES").split()
    index = nodes.index(node) * per_node + number
    host = pairs(_variable(environment, "EMPG_ADDRESSES"))[node]
    port = Ports(int(_variable(environment, "EMPG_BASE_PORT"))).engine(index)
    command = commands.engine(sys.executable, plan.engine_arguments, host, port)
    if gpus_per_node is None:
        return command, {VARIABLE: ""}
    first = first_gpu + number * plan.engine_size
    try:
        devices = visible_gpus(first, plan.engine_size, environment, present=gpus_per_node)
    except ValueError as error:
        before = "trainer and the engines" if first_gpu else "engines"
        raise TaskError(
            f"engine {number} of {node} takes {plan.engine_size} GPUs (engines.tensor_parallel), after {first} of "
            f"the {before} before it: {error}. Ask Slurm for enough "
            "(--gpus-per-node), or lower engines.tensor_parallel or EMPG_ENGINES_PER_NODE"
        ) from None
    return command, {VARIABLE: devices}


def trainer_command(
    plan: RunPlan,
    environment: Mapping[str, str],
    *,
    driver: str,
    engines: Sequence[str],
    gpus_per_node: int | None,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """This node's torchrun, and what is added to its environment. Node 0 is the first trainer node, whatever it is
    called.

    Ranks that do not fill the node take its first GPUs. Raises TaskError when it has too few.
    """
    nodes = _variable(environment, "EMPG_TRAINER_NODE_NAMES").split()
    ranks = plan.trainer_ranks // len(nodes)
    place = commands.TrainerPlace(
        ranks=ranks,
        address=pairs(_variable(environment, "EMPG_ADDRESSES"))[nodes[0]],
        port=Ports(int(_variable(environment, "EMPG_BASE_PORT"))).trainer,
        nodes=len(nodes),
        number=nodes.index(_variable(environment, "SLURMD_NODENAME")),
    )
    variables = trainer_environment(environment)
    if gpus_per_node is not None and ranks < gpus_per_node:
        try:
            variables[VARIABLE] = visible_gpus(0, ranks, environment, present=gpus_per_node)
        except ValueError as error:
            raise TaskError(f"the trainer takes {ranks} GPUs of a node: {error}") from None
    return commands.trainer(sys.executable, plan, place, driver, engines), variables


def become(command: Sequence[str], variables: Mapping[str, str]) -> NoReturn:
    """Run the command in this process's place, with its node's variables and these; all are printed first."""
    for name, value in variables.items():
        print(f"env: {name}={value}", flush=True)
    try:
        os.execvpe(command[0], list(command), {**os.environ, **variables})
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        why = getattr(error, "strerror", None) or error
        raise TaskError(f"{command[0]!r} cannot be run: {why}; set EMPG_PYTHON") from None


def take_place() -> None:
    """Write to this task's own log from now on, and set the variables of its node, printed at its top.

    srun's %N would be the machine's name, which need not be the node's. Raises TaskError, and LogError
    where the log cannot be written.
    """
    log = os.environ.get("EMPG_LOG")
    if log:
        node, task = _variable(os.environ, "SLURMD_NODENAME"), _variable(os.environ, "SLURM_LOCALID")
        path = f"{log}.{node}.{task}.log"
        try:
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise LogError(f"EMPG_LOG is {log}: cannot write {path}: {error.strerror}") from None
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        os.close(opened)
    wanted = task_variables(read_node(os.environ), os.environ.get("EMPG_RUN_FOLDER", ""))
    for line in described(wanted, os.environ):
        print(line, flush=True)
    os.environ.update(added(wanted, os.environ))


def read_plan(path: Path) -> RunPlan:
    """The plan that the job wrote. Raises TaskError."""
    try:
        return RunPlan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"PLAN is {path}: {error}; give the file that the job wrote to its run folder") from None


app = plain_app()

NoGpu = Annotated[bool, typer.Option("--no-gpu", help="Let it see none.")]
Number = Annotated[int, typer.Option(min=0, help="Of the engine among those of its node, from 0.")]
PerNode = Annotated[int, typer.Option(min=1, help="Engines on each rollout node.")]
GpusPerNode = Annotated[int | None, typer.Option(min=0, help="Leave out for a run without GPUs.")]
FirstGpu = Annotated[int, typer.Option(min=0, help="After those of the trainer on the node.")]
Driver = Annotated[str, typer.Option(help="Its URL; none for a supervised warm-up.")]
Engines = Annotated[list[str] | None, typer.Option(help="URL of an engine; repeat for each.")]


# What follows the command's name is the command's own, also without --.
@app.command(context_settings={"allow_interspersed_args": False})
def run(command: list[str], no_gpu: NoGpu = False) -> None:
    """Any command, the same in each task."""
    variables = {}
    if no_gpu:
        variables[VARIABLE] = ""
    with told_to_the_launcher():
        take_place()
        become(command, variables)


@app.command()
def engine(
    plan: Path, number: Number, per_node: PerNode, gpus_per_node: GpusPerNode = None, first_gpu: FirstGpu = 0
) -> None:
    """A rollout engine."""
    with told_to_the_launcher():
        take_place()
        command, variables = engine_command(
            read_plan(plan),
            os.environ,
            number=number,
            per_node=per_node,
            gpus_per_node=gpus_per_node,
            first_gpu=first_gpu,
        )
        become(command, variables)


@app.command()
def trainer(plan: Path, driver: Driver = "", engine: Engines = None, gpus_per_node: GpusPerNode = None) -> None:
    """A node's trainer ranks."""
    with told_to_the_launcher():
        take_place()
        command, variables = trainer_command(
            read_plan(plan),
            os.environ,
            driver=driver,
            engines=engine or [],
            gpus_per_node=gpus_per_node,
        )
        become(command, variables)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
