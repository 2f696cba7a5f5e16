"""`empg preflight`: options in, exit code out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_empg.common.options import number

if TYPE_CHECKING:
    from megatron_empg.cluster.preflight.collect import PreflightOptions
    from megatron_empg.recipe import Recipe


RecipeFile = Annotated[Path | None, typer.Argument(help="A recipe: its run folder, model and data are looked at.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Keys to change, as section.key=value.")]
OwnRunFolder = Annotated[Path | None, typer.Option(help="Instead of the recipe's run.folder.")]
OwnModel = Annotated[Path | None, typer.Option(help="Instead of the recipe's model.path.")]
Data = Annotated[list[Path] | None, typer.Option(help="A file or folder that must be there; repeatable.")]
Manifest = Annotated[Path | None, typer.Option(help="SHA-256 of the model's files, as sha256sum writes them.")]
Pins = Annotated[Path | None, typer.Option(help="Packages must have this file's == versions.")]
UseGpus = Annotated[bool | None, typer.Option("--gpu/--no-gpu", help="Default: looked at where there are any.")]
Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs that every node must have.")]
Ports = Annotated[str, typer.Option(help="Ports that must be free: 29500-29520, or 8000,8001.")]
Disk = Annotated[float, typer.Option(callback=number(), help="GiB that must be free for the run folder.")]
WriteSpeed = Annotated[float, typer.Option(callback=number(), help="MB/s below which the run folder is slow.")]
SharedMemory = Annotated[float, typer.Option(callback=number(), help="GiB that must be free in /dev/shm.")]
HostMemory = Annotated[
    float | None,
    typer.Option(
        callback=number(),
        help="GiB of main memory that must be available; the recipe's checkpoints' if not given.",
    ),
]
Skew = Annotated[float, typer.Option(callback=number(), help="Seconds a clock may be off the others.")]
Report = Annotated[Path | None, typer.Option(help="Write findings and facts here too.")]
Timeout = Annotated[float, typer.Option(callback=number(above=0), help="Seconds to wait for the other nodes.")]


def preflight(
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    run_folder: OwnRunFolder = None,
    model: OwnModel = None,
    data: Data = None,
    manifest: Manifest = None,
    requirements: Pins = None,
    gpu: UseGpus = None,
    gpus: Gpus = None,
    ports: Ports = "",
    min_disk: Disk = 10.0,
    min_write_speed: WriteSpeed = 100.0,
    min_shared_memory: SharedMemory = 1.0,
    min_host_memory: HostMemory = None,
    max_skew: Skew = 1.0,
    json: Report = None,
    timeout: Timeout = 100.0,
) -> None:
    """Is every node fit for the run? On one machine, or as a job step with a task on every node."""
    from megatron_empg.cluster.preflight.judge import Requirements
    from megatron_empg.cluster.preflight.run import read_pins, run_preflight

    if recipe is None:
        named = _Named()
    else:
        named = _of_recipe(recipe, overrides or [], gpus)
    named = named.but(run_folder=run_folder, model=model, data=data or [], host_memory=min_host_memory)
    if requirements:
        pins = read_pins(requirements)
    else:
        pins = {}
    asked = _questions(named, manifest, pins, ports, gpu)
    wanted = Requirements(
        use_gpus=gpu,
        gpus=gpus,
        disk=min_disk,
        write_speed=min_write_speed,
        shared_memory=min_shared_memory,
        host_memory=named.host_memory,
        trainer_nodes=tuple(os.environ.get("EMPG_TRAINER_NODE_NAMES", "").split()) or None,
        clock_skew=max_skew,
        pins=pins,
    )
    raise typer.Exit(run_preflight(asked, wanted, limit=timeout, json_path=json))


@dataclass(frozen=True)
class _Named:
    """What a run reads, writes and takes. `host_memory`: GiB on a trainer node."""

    run_folder: Path | None = None
    model: Path | None = None
    weights: bool = True
    data: tuple[Path, ...] = ()
    host_memory: float = 0.0

    def but(
        self, *, run_folder: Path | None, model: Path | None, data: list[Path], host_memory: float | None
    ) -> _Named:
        """The same, but for what the command line says; its `data` comes on top."""
        return replace(
            self,
            run_folder=run_folder or self.run_folder,
            model=model or self.model,
            data=(*self.data, *data),
            host_memory=self.host_memory if host_memory is None else host_memory,
        )


def _questions(
    named: _Named, manifest: Path | None, pins: Mapping[str, str], ports: str, use_gpus: bool | None
) -> PreflightOptions:
    """What every node looks at."""
    from megatron_empg.cluster.preflight.collect import PreflightOptions
    from megatron_empg.cluster.preflight.run import PACKAGES, parse_ports

    return PreflightOptions(
        run_folder=named.run_folder,
        model=named.model,
        weights=named.weights,
        manifest=manifest,
        data=named.data,
        packages=tuple(dict.fromkeys([*PACKAGES, *pins])),
        ports=parse_ports(ports),
        use_gpus=use_gpus,
    )


def _of_recipe(recipe: Path, overrides: list[str], gpus: int | None) -> _Named:
    """What a recipe reads and writes, and the main memory it takes."""
    from megatron_empg.environments.registry import data_files
    from megatron_empg.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    files = data_files(loaded.environment.name, loaded.environment.settings)
    return _Named(
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
