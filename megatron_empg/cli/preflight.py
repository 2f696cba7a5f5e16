"""`empg preflight`: options in, exit code out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_empg.common.options import number

if TYPE_CHECKING:
    from megatron_empg.recipe import Recipe


def preflight(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe: its run folder, model and data are looked at.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Keys to change, as section.key=value.")] = None,
    run_folder: Annotated[Path | None, typer.Option(help="Instead of the recipe's run.folder.")] = None,
    model: Annotated[Path | None, typer.Option(help="Instead of the recipe's model.path.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="A file or folder that must be there; repeatable.")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="SHA-256 of the model's files, as sha256sum writes them.")
    ] = None,
    requirements: Annotated[Path | None, typer.Option(help="Packages must have this file's == versions.")] = None,
    gpu: Annotated[
        bool | None, typer.Option("--gpu/--no-gpu", help="Default: looked at where there are any.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs that every node must have.")] = None,
    ports: Annotated[str, typer.Option(help="Ports that must be free: 29500-29520, or 8000,8001.")] = "",
    min_disk: Annotated[
        float, typer.Option(callback=number(), help="GiB that must be free for the run folder.")
    ] = 10.0,
    min_write_speed: Annotated[
        float, typer.Option(callback=number(), help="MB/s below which the run folder is slow.")
    ] = 100.0,
    min_shared_memory: Annotated[
        float, typer.Option(callback=number(), help="GiB that must be free in /dev/shm.")
    ] = 1.0,
    min_host_memory: Annotated[
        float | None,
        typer.Option(
            callback=number(),
            help="GiB of main memory that must be available; the recipe's checkpoints' if not given.",
        ),
    ] = None,
    max_skew: Annotated[
        float, typer.Option(callback=number(), help="Seconds a clock may be off the others.")
    ] = 1.0,
    json: Annotated[Path | None, typer.Option(help="Write findings and facts here too.")] = None,
    timeout: Annotated[
        float, typer.Option(callback=number(above=0), help="Seconds to wait for the other nodes.")
    ] = 100.0,
) -> None:
    """Is every node fit for the run? On one machine, or as a job step with a task on every node."""
    from megatron_empg.cluster.preflight.collect import Questions
    from megatron_empg.cluster.preflight.judge import Requirements
    from megatron_empg.cluster.preflight.run import PACKAGES, parse_ports, read_pins, run_preflight

    named = _Paths() if recipe is None else _of_recipe(recipe, overrides or [], gpus)
    pins = read_pins(requirements) if requirements else {}
    asked = Questions(
        run_folder=run_folder or named.run_folder,
        model=model or named.model,
        weights=named.weights,
        manifest=manifest,
        data=(*named.data, *(data or ())),
        packages=tuple(dict.fromkeys([*PACKAGES, *pins])),
        ports=parse_ports(ports),
        use_gpus=gpu,
    )
    wanted = Requirements(
        use_gpus=gpu,
        gpus=gpus,
        disk=min_disk,
        write_speed=min_write_speed,
        shared_memory=min_shared_memory,
        host_memory=named.host_memory if min_host_memory is None else min_host_memory,
        trainer_nodes=tuple(os.environ.get("EMPG_TRAINER_NODE_NAMES", "").split()) or None,
        clock_skew=max_skew,
        pins=pins,
    )
    raise typer.Exit(run_preflight(asked, wanted, limit=timeout, json_path=json))


@dataclass(frozen=True)
class _Paths:
    run_folder: Path | None = None
    model: Path | None = None
    weights: bool = True
    data: tuple[Path, ...] = ()
    host_memory: float = 0.0
    """GiB on a trainer node."""


def _of_recipe(recipe: Path, overrides: list[str], gpus: int | None) -> _Paths:
    """What a recipe reads and writes, and the main memory it takes."""
    from megatron_empg.environments.registry import data_files
    from megatron_empg.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    files = data_files(loaded.environment.name, loaded.environment.settings)
    return _Paths(
        host_memory=_host_memory(loaded, gpus),
        run_folder=loaded.run.folder,
        model=loaded.model.path,
        weights=loaded.model.initialise == "checkpoint",
        data=tuple(files.values()),  # also where the recipe leaves them to their defaults
    )


def _host_memory(recipe: Recipe, gpus: int | None) -> float:
    """GiB for a checkpoint; 0 for a model whose configuration cannot be read, which another check says."""
    from megatron_empg.common.gpus import GPUS_PER_NODE
    from megatron_empg.planner.host_memory import checkpoint_host_memory
    from megatron_empg.weights.mapping.model_config import ModelConfig, ModelConfigError

    try:
        config = ModelConfig.from_folder(recipe.model.path)
    except ModelConfigError:
        return 0.0
    return checkpoint_host_memory(recipe, config, gpus or GPUS_PER_NODE) / 2**30
