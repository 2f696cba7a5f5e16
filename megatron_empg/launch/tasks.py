"""What the scripts in slurm/ ask of the package: checks, the resolved recipe, and each task's own command.

    python -m megatron_empg.launch.tasks check RECIPE key=value … --trainer-nodes 4 --rollout-nodes 4 …

The shape of the job comes from the scripts; addresses and ports from Slurm, through EMPG_ADDRESSES
("node1=10.0.0.1 node2=10.0.0.2 …") and EMPG_BASE_PORT.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from megatron_empg.common.errors import told_plainly
from megatron_empg.common.options import finite
from megatron_empg.common.visible_gpus import VARIABLE, visible_gpus
from megatron_empg.launch.environment_variables import trainer_environment
from megatron_empg.launch.play import play_one_question
from megatron_empg.launch.prepared_data import DataChoice, data_overrides, what_is_trained_on
from megatron_empg.recipe import Recipe, RecipeError, load_recipe
from megatron_empg.run.folder import RunFolder

if TYPE_CHECKING:
    from megatron_empg.environments.base import SideService
    from megatron_empg.weights.mapping.model_config import ModelConfig

GIB = 2**30
FIRST_ENGINE_PORT = 8
"""Ports below it, counted from the base port: 0 trainer, 1 driver, 3 preflight, 4 weights; 2 and 5-7 services."""
MOST_SERVICES = 4


@dataclass(frozen=True)
class Shape:
    """Nodes by role and what each holds; `cpu` for a run without GPUs."""

    trainer_nodes: int
    rollout_nodes: int
    gpus_per_node: int
    engines_per_node: int | None = None
    cpu: bool = False
    gpu_memory_gib: float = 79.0

    def engines_on_node(self, recipe: Recipe) -> int:
        """As given, else as many as the node's GPUs hold."""
        return self.engines_per_node or self.gpus_per_node // recipe.engines.tensor_parallel


def resolve(path: Path, overrides: list[str], shape: Shape, data: DataChoice) -> Recipe:
    """The recipe with as many engines as the rollout nodes hold. Raises RecipeError with every fault found.

    `data=` and `search_url=` are short for the environment's corpus and service; `data` says what is trained on
    where they do not.
    """
    short = {"data": "environment.settings.corpus", "search_url": "environment.settings.search_url"}
    words = [
        short.get(word.partition("=")[0], word.partition("=")[0]) + word[word.find("=") :] for word in overrides
    ]
    recipe = load_recipe(path, words)
    prepared = data_overrides(recipe, words, data)
    if prepared:
        recipe = load_recipe(path, [*prepared, *words])
    engines = shape.rollout_nodes * shape.engines_on_node(recipe)
    faults = shape_faults(recipe, shape)
    if faults:
        raise RecipeError("the recipe does not fit the nodes:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return recipe.model_copy(update={"engines": recipe.engines.model_copy(update={"count": engines})})


def shape_faults(recipe: Recipe, shape: Shape) -> list[str]:
    """Why the recipe does not fit the nodes, and what to change."""
    actor, faults = recipe.actor, []
    given = shape.trainer_nodes * shape.gpus_per_node
    if actor.world_size != given:
        model_parallel = actor.world_size // actor.data_parallel
        fix = f"EMPG_TRAINER_NODES={-(-actor.world_size // shape.gpus_per_node)}"
        if given % model_parallel == 0:
            fix = f"actor.data_parallel={given // model_parallel}"
        faults.append(
            f"EMPG_TRAINER_NODES is {shape.trainer_nodes} with {shape.gpus_per_node} GPUs each, {given} in all; "
            f"the actor's layout takes {actor.world_size} (tensor {actor.tensor_parallel} x pipeline "
            f"{actor.pipeline_parallel} x context {actor.context_parallel} x data {actor.data_parallel}): "
            f"set {fix}"
        )
    size, on_node = recipe.engines.tensor_parallel, shape.engines_on_node(recipe)
    if on_node < 1 or (not shape.cpu and on_node * size > shape.gpus_per_node):
        faults.append(
            f"engines.tensor_parallel is {size}, EMPG_ENGINES_PER_NODE {shape.engines_per_node or 'not given'}: a "
            f"rollout node's {shape.gpus_per_node} GPUs do not hold {max(1, on_node)} such engines; lower either"
        )
    return faults


def check(recipe: Recipe, shape: Shape) -> list[str]:
    """Everything that can be known before a process starts; returns notes. Raises RecipeError."""
    from megatron_empg.recipe.check import check_recipe
    from megatron_empg.recipe.identity import require_same_run

    config = check_recipe(recipe)
    _check_run_folder(recipe.run.folder)
    require_same_run(recipe, model=not os.environ.get("EMPG_MEGATRON_CHECKPOINT"))
    notes = what_is_trained_on(recipe)
    if not shape.cpu:
        notes.append(_check_memory(recipe, config, shape.gpu_memory_gib * GIB))
    return notes


def _check_run_folder(folder: Path) -> None:
    """Writable, found out where it or the nearest folder above it lies. Raises RecipeError."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise RecipeError(
            f"run.folder is {folder}; {existing} cannot be written: {error.strerror}. Give another by "
            "EMPG_RUN_FOLDER, or mend its permissions"
        ) from None


def _check_memory(recipe: Recipe, config: ModelConfig, gpu_memory: float) -> str:
    """Whether trainer ranks and engines fit the GPU's memory, by `empg plan`'s formulas."""
    from megatron_empg.planner.engines import engine_memory
    from megatron_empg.planner.memory import rank_memory

    stages = [rank_memory(recipe, config, stage) for stage in range(recipe.actor.pipeline_parallel)]
    peak, engine = max(stage.total for stage in stages), engine_memory(recipe, config, gpu_memory)
    over = [f"a trainer rank needs {peak / GIB:.1f} GiB"] if peak > gpu_memory else []
    if over or engine.fault:
        gpus = recipe.actor.world_size + recipe.engines.count * recipe.engines.tensor_parallel
        raise RecipeError(
            f"GPUs of {gpu_memory / GIB:.0f} GiB (EMPG_GPU_MEMORY) are too small: "
            + "; ".join([*over, *([engine.fault] if engine.fault else [])])
            + f". `empg plan RECIPE --gpus {gpus}` names layouts that fit"
        )
    on_engine = engine.weights + engine.kv_cache + engine.workspace
    return f"fits: {peak / GIB:.1f} GiB a trainer rank, {on_engine / GIB:.1f} GiB an engine GPU"


def prepare(recipe: Recipe, trainer_address: str, services: list[str]) -> None:
    """Write the resolved recipe to the run folder, as the job's processes read it. Raises RecipeError.

    `services`: SETTING=URL of each that the job starts.
    """
    from megatron_empg.recipe.identity import take_up

    # The trainer's rank 0 sends the weights from this address; each engine is told its own.
    engines = recipe.engines.model_copy(update={"host": trainer_address})
    recipe = recipe.model_copy(update={"engines": engines})
    for service in services:
        setting, _, url = service.partition("=")
        recipe.environment.settings[setting] = url
    take_up(recipe).close()


def facts(recipe: Recipe, shape: Shape) -> dict[str, object]:
    """What the scripts need to know of the recipe; `services` are words "NAME SETTING TOKEN_VARIABLE" each."""
    folder = RunFolder(recipe.run.folder)
    return {
        "run_folder": folder.root.absolute(),
        "engines_per_node": shape.engines_on_node(recipe),
        "checkpoint": folder.last_checkpoint(),
        "finished": int(folder.finished(recipe.run.steps)),
        "environment": recipe.environment.name,
        "services": " ".join(f"{found.name} {found.setting} {found.token_variable}" for found in services(recipe)),
    }


def services(recipe: Recipe) -> tuple[SideService, ...]:
    """The servers that the job starts for the environment. Raises RecipeError."""
    from megatron_empg.environments.registry import plugin
    from megatron_empg.environments.settings import read_settings

    acting = recipe.environment
    try:
        kind = plugin(acting.name)
        found = kind.services(read_settings(kind.Settings, acting.settings, acting.name))
    except ValueError as error:
        raise RecipeError(f"environment.settings: {error}") from None
    for service in found:
        words = (service.name, service.setting, service.token_variable)
        if not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", word) for word in words):
            raise RecipeError(
                f"the environment {acting.name} asks for the service {words}: these must be plain words"
            )
    if len(found) > MOST_SERVICES:
        raise RecipeError(
            f"the environment {acting.name} asks for {len(found)} services; a job starts {MOST_SERVICES} at most"
        )
    return found


def service_command(recipe: Recipe, name: str, without: list[str], host: str, port: int) -> list[str]:
    """The command of the service called `name`. `without`: settings that hold the addresses of the job's own."""
    for setting in without:
        recipe.environment.settings.pop(setting, None)
    for service in services(recipe):
        if service.name == name:
            return [sys.executable, *service.arguments, "--host", host, "--port", str(port)]
    raise RecipeError(f"the environment {recipe.environment.name} has no service {name!r}")


def own_address() -> str:
    """This node's, of EMPG_ADDRESSES."""
    addresses = dict(pair.split("=", 1) for pair in os.environ["EMPG_ADDRESSES"].split())
    return addresses[os.environ["SLURMD_NODENAME"]]


def engine_command(
    recipe: Recipe, engines_per_node: int, gpus_per_node: int | None
) -> tuple[list[str], dict[str, str]]:
    """This task's engine: its place among the rollout nodes gives the port, its place on the node the GPUs.

    `gpus_per_node` None is a run without GPUs. Raises RecipeError when too few GPUs are left for the engine.
    """
    local, nodes = int(os.environ["SLURM_LOCALID"]), os.environ["EMPG_ROLLOUT_NODE_NAMES"].split()
    index = nodes.index(os.environ["SLURMD_NODENAME"]) * engines_per_node + local
    settings = recipe.engines
    command = [
        *(sys.executable, "-m", "megatron_empg.rollout.server", "--model", str(recipe.model.path)),
        *("--host", own_address(), "--port", str(int(os.environ["EMPG_BASE_PORT"]) + FIRST_ENGINE_PORT + index)),
        *("--dtype", recipe.model.dtype, "--max-model-len", str(recipe.rollout.max_episode_tokens)),
        *("--max-num-seqs", str(min(1024, recipe.rollout.concurrency))),
        *("--tensor-parallel", str(settings.tensor_parallel)),
    ]
    if settings.kv_cache_gib is not None:
        command += ["--kv-cache-bytes", str(int(settings.kv_cache_gib * GIB))]
    devices = "" if gpus_per_node is None else engine_devices(settings.tensor_parallel, local, gpus_per_node)
    return command, {VARIABLE: devices}


def engine_devices(tensor_parallel: int, local: int, gpus_per_node: int) -> str:
    """The GPUs of a node's engine number `local`, as CUDA_VISIBLE_DEVICES names them: by number or by UUID.

    Not every cluster sets the variable; without it the node's GPUs are the job's. Raises RecipeError when fewer
    than `tensor_parallel` are left: vLLM would else look for a CPU.
    """
    first = local * tensor_parallel
    try:
        return visible_gpus(first, tensor_parallel, os.environ, present=gpus_per_node)
    except ValueError as error:
        raise RecipeError(
            f"engine {local} of {os.environ['SLURMD_NODENAME']} takes {tensor_parallel} GPUs "
            f"(engines.tensor_parallel), after {first} of the engines before it: {error}. Ask Slurm for enough "
            "(--gpus-per-node), or lower engines.tensor_parallel or EMPG_ENGINES_PER_NODE"
        ) from None


def trainer_command(recipe: Recipe, arguments: list[str]) -> list[str]:
    """This node's torchrun. The rendezvous is static: node 0 is the first trainer node, whatever it is called."""
    nodes = os.environ["EMPG_TRAINER_NODE_NAMES"].split()
    return [
        *(sys.executable, "-m", "megatron_empg.launch.torchrun"),
        *("--nnodes", str(len(nodes)), "--node-rank", str(nodes.index(os.environ["SLURMD_NODENAME"]))),
        *("--nproc-per-node", str(recipe.actor.world_size // len(nodes))),
        *("--master-addr", recipe.engines.host, "--master-port", os.environ["EMPG_BASE_PORT"]),
        *("-m", "megatron_empg.trainer.worker", "train", str(recipe.run.folder / "recipe.yaml"), *arguments),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m megatron_empg.launch.tasks")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("check", "prepare", "facts"):
        _add_shape(commands.add_parser(name))
    for name in ("engine", "trainer", "service"):
        added = commands.add_parser(name, allow_abbrev=False)
        added.add_argument("recipe", type=Path, help="the resolved recipe of the run folder")
        if name == "service":
            _add_service(added)
        if name == "engine":
            added.add_argument("--per-node", type=int, required=True)
            added.add_argument("--gpus-per-node", type=int, help="leave out for a run without GPUs")
    given, rest = parser.parse_known_args()
    with told_plainly():
        if given.command == "engine":
            _become(*engine_command(load_recipe(given.recipe), given.per_node, given.gpus_per_node))
        if given.command == "service":
            recipe = load_recipe(given.recipe)
            _become(service_command(recipe, given.name, given.without, given.host, given.port), {})
        if given.command == "trainer":
            _become(trainer_command(load_recipe(given.recipe), rest), trainer_environment(os.environ))
        if rest:
            parser.error(f"unknown arguments: {' '.join(rest)}")
        _answer(given)


def _become(command: list[str], environment: dict[str, str]) -> NoReturn:
    """Run the command in this process's place, what is added to its environment printed as slurm/env.sh does."""
    for name, value in environment.items():
        print(f"env: {name}={value}", flush=True)
    os.execve(command[0], command, os.environ | environment)


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value")
    for name in ("--trainer-nodes", "--rollout-nodes", "--gpus-per-node"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--engines-per-node", type=int)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--gpu-memory", type=finite, default=79.0, help="GiB of a GPU that can be used")
    parser.add_argument("--trainer-address", default="127.0.0.1")
    parser.add_argument("--service", action="append", default=[], help="SETTING=URL of one that the job starts")
    parser.add_argument("--data", type=Path, help="a folder that slurm/prepare.sh prepared (EMPG_DATA)")
    parser.add_argument("--miniature", action="store_true", help="train on the miniature (EMPG_MINIATURE)")
    parser.add_argument("--play", action="store_true", help="play one question without a policy, and show it")


def _add_service(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")
    parser.add_argument("--without", action="append", default=[], help="a setting that the job itself has given")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)


def _answer(given: argparse.Namespace) -> None:
    shape = Shape(
        given.trainer_nodes, given.rollout_nodes, given.gpus_per_node, given.engines_per_node, given.cpu,
        given.gpu_memory,
    )  # fmt: skip
    recipe = resolve(given.recipe, given.overrides, shape, DataChoice(given.data, given.miniature))
    if given.command == "check":
        for note in check(recipe, shape):
            print(f"note: {note}", file=sys.stderr)
    if given.play:
        print("\n".join(play_one_question(recipe)), file=sys.stderr)
    known = facts(recipe, shape)  # before the services' addresses stand in it
    if given.command == "prepare":
        prepare(recipe, given.trainer_address, given.service)
    for name, value in known.items():
        print(f"{name}={value}")


if __name__ == "__main__":
    main()
