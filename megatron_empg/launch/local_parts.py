"""The parts of a run on this machine, engines to trainer ranks, on free ports and the caller's GPUs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from megatron_empg.common.visible_gpus import VARIABLE, visible_gpus
from megatron_empg.launch import commands
from megatron_empg.launch.environment_variables import trainer_environment
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.liveness import engine_probes, server_probes
from megatron_empg.launch.parts import RunPart
from megatron_empg.launch.ports import free_port
from megatron_empg.launch.recipe_plan import core_silence_seconds, engine_settings
from megatron_empg.launch.run_plan import RunPlan
from megatron_empg.launch.service_check import check_services
from megatron_empg.recipe import Recipe, RecipeError, SftRecipe

LOOPBACK = "127.0.0.1"


def check_machine(recipe: Recipe | SftRecipe, *, trains: bool = True) -> None:
    """Raise RecipeError unless this machine has the GPUs and the interface that the recipe wants, and the services
    that its environment names answer."""
    if isinstance(recipe, Recipe):
        try:
            free_port(recipe.engines.host)
        except OSError as error:
            raise RecipeError(
                f"engines.host is {recipe.engines.host!r}, which is not an interface of this machine ({error}); "
                "127.0.0.1 is"
            ) from None
    first_engine_gpu(recipe, trains=trains)
    check_services(recipe)


def first_engine_gpu(recipe: Recipe | SftRecipe, *, trains: bool = True) -> int | None:
    """The engines' GPUs come after the trainer's, if it `trains`; None where there is no GPU. Raises RecipeError
    if there are too few."""
    import torch

    # Of those that CUDA_VISIBLE_DEVICES leaves visible, as everything here.
    present = torch.cuda.device_count()
    actor = recipe.actor.world_size if trains else 0
    engines = recipe.engines.world_size if isinstance(recipe, Recipe) else 0
    if present and present < actor + engines:
        raise RecipeError(
            f"{present} GPUs of this machine are ours to use; the recipe needs {actor + engines}: {actor} for the "
            f"actor (actor.tensor_parallel x pipeline_parallel x context_parallel x data_parallel) and {engines} "
            "for the engines (engines.count x engines.tensor_parallel)"
        )
    return actor if present else None


def engine_parts(recipe: Recipe, *, trains: bool = True) -> list[RunPart]:
    """The recipe's engines. If it `trains` too, their GPUs come after the trainer's."""
    engines, arguments = recipe.engines, engine_settings(recipe).arguments()
    first_gpu = first_engine_gpu(recipe, trains=trains)
    probes = engine_probes(engines.silence_timeout, core_silence_seconds(recipe))
    parts = []
    for index in range(engines.count):
        environment = {}
        if first_gpu is not None:
            mine = first_gpu + index * engines.tensor_parallel
            environment[VARIABLE] = visible_gpus(mine, engines.tensor_parallel, os.environ)
        port = free_port(engines.host)
        parts.append(
            RunPart(
                f"engine_{index}",
                commands.engine(sys.executable, arguments, engines.host, port),
                ExitCode.ENGINES,
                environment=environment,
                addresses=(commands.url_of(engines.host, port),),
                start_seconds=engines.start_timeout,
                probes=probes,
            )
        )
    return parts


def driver_part(plan: RunPlan, engines: Sequence[str]) -> RunPart:
    """The rollout service; `engines` are their URLs."""
    port = free_port()
    command = commands.driver(sys.executable, plan, LOOPBACK, port, engines)
    return RunPart(
        "driver",
        command,
        ExitCode.DRIVER,
        addresses=(commands.url_of(LOOPBACK, port),),
        probes=server_probes(plan.silence_seconds),
    )


def trainer_part(plan: RunPlan, driver: str = "", engines: Sequence[str] = ()) -> RunPart:
    """torchrun with all ranks, on the first of the caller's GPUs where there are any."""
    import torch

    environment = trainer_environment(os.environ)
    if torch.cuda.device_count():
        environment[VARIABLE] = visible_gpus(0, plan.trainer_ranks, os.environ)
    place = commands.TrainerPlace(plan.trainer_ranks, LOOPBACK, free_port())
    return RunPart(
        "trainer",
        commands.trainer(sys.executable, plan, place, driver, engines),
        ExitCode.TRAINER,
        environment=environment,
        ends=True,
        heartbeat=commands.heartbeat_of(plan),
    )
