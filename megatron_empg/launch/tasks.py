"""What a Slurm job asks of the package, inside the image: a recipe checked, planned, its run folder prepared.

    python -m megatron_empg.launch.tasks check RECIPE key=value … --nodes 8 --gpus-per-node 8

The answer is the plan of the run, a line of JSON (`run_plan`); a refusal is said on stderr. The job itself runs
beside the image, with the standard library alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megatron_empg.common.errors import told_to_the_launcher
from megatron_empg.common.options import number, parse_command_line
from megatron_empg.launch.placement import JobShape, PlacementError, share_out
from megatron_empg.launch.play import play_one_question
from megatron_empg.launch.prepared_data import DataChoice, data_overrides, what_is_trained_on
from megatron_empg.launch.recipe_plan import plan_of
from megatron_empg.launch.run_plan import RunPlan
from megatron_empg.recipe import Recipe, RecipeError, SftRecipe, load_recipe
from megatron_empg.recipe.yaml_text import read_yaml

if TYPE_CHECKING:
    from megatron_empg.weights.mapping.model_config import ModelConfig

GIB = 2**30
SHORT = {"data": "environment.settings.corpus", "search_url": "environment.settings.search_url"}
"""Arguments that stand for keys of the recipe."""


def read_recipe(path: Path, words: Sequence[str], data: DataChoice) -> Recipe | SftRecipe:
    """The recipe of a job, of either kind; `data` says what is trained on where the words do not.

    Raises RecipeError with every fault found.
    """
    overrides = [_in_full(word) for word in words]
    if _warms_up(path):
        return load_recipe(path, overrides, SftRecipe)
    recipe = load_recipe(path, overrides)
    prepared = data_overrides(recipe, overrides, data)
    return load_recipe(path, [*prepared, *overrides]) if prepared else recipe


def _in_full(word: str) -> str:
    key, equals, value = word.partition("=")
    return SHORT.get(key, key) + equals + value


def _warms_up(path: Path) -> bool:
    """Whether it is a supervised warm-up's; what cannot be read is left to `load_recipe` to say."""
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return False
    return isinstance(raw, dict) and "sft" in raw


def fitted(recipe: Recipe | SftRecipe, shape: JobShape) -> Recipe | SftRecipe:
    """The recipe with as many engines as the nodes hold. Raises RecipeError where it does not fit them."""
    try:
        shares = share_out(plan_of(recipe), shape)
    except PlacementError as error:
        raise RecipeError(str(error)) from None
    if isinstance(recipe, SftRecipe):
        return recipe
    engines = recipe.engines.model_copy(update={"count": shares.engines})
    return recipe.model_copy(update={"engines": engines})


def check(recipe: Recipe | SftRecipe, gpu_memory: float | None) -> list[str]:
    """Everything that can be known before a process starts; returns notes. Raises RecipeError.

    `gpu_memory`: bytes of a GPU that can be used, None for a run without.
    """
    from megatron_empg.recipe.check import check_recipe
    from megatron_empg.recipe.identity import require_same_run

    config = check_recipe(recipe)
    check_run_folder(recipe.run.folder)
    # A Megatron checkpoint becomes the model once the job has begun.
    require_same_run(recipe, model=not os.environ.get("EMPG_MEGATRON_CHECKPOINT"))
    if isinstance(recipe, SftRecipe):
        return []
    notes = what_is_trained_on(recipe)
    if gpu_memory is not None:
        notes.append(check_memory(recipe, config, gpu_memory))
    return notes


def check_run_folder(folder: Path) -> None:
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
            "EMPG_RUN_FOLDER, or fix its permissions"
        ) from None


def check_memory(recipe: Recipe, config: ModelConfig, gpu_memory: float) -> str:
    """Whether trainer ranks and engines fit the GPU's bytes, by `empg plan`'s formulas. Raises RecipeError."""
    from megatron_empg.planner.engines import engine_memory
    from megatron_empg.planner.memory import rank_memory

    stages = [rank_memory(recipe, config, stage) for stage in range(recipe.actor.pipeline_parallel)]
    peak = max(stage.total for stage in stages)
    engine = engine_memory(recipe, config, gpu_memory)
    faults = []
    if peak > gpu_memory:
        faults.append(f"a trainer rank needs {peak / GIB:.1f} GiB")
    if engine.fault:
        faults.append(engine.fault)
    if faults:
        gpus = recipe.actor.world_size + recipe.engines.count * recipe.engines.tensor_parallel
        raise RecipeError(
            f"GPUs of {gpu_memory / GIB:.0f} GiB (EMPG_GPU_MEMORY) are too small: "
            + "; ".join(faults)
            + f". `empg plan RECIPE --gpus {gpus}` names layouts that fit"
        )
    on_engine = engine.weights + engine.kv_cache + engine.workspace
    return f"fits: {peak / GIB:.1f} GiB per trainer rank, {on_engine / GIB:.1f} GiB per engine GPU"


def prepare(recipe: Recipe | SftRecipe, trainer_address: str, services: Sequence[str]) -> None:
    """Write the resolved recipe to the run folder, as the job's processes read it. Raises RecipeError.

    `services`: SETTING=URL of each that the job starts.
    """
    from megatron_empg.recipe.identity import take_up

    if isinstance(recipe, Recipe):
        # The trainer's rank 0 sends the weights from this address; each engine is told its own.
        engines = recipe.engines.model_copy(update={"host": trainer_address})
        recipe = recipe.model_copy(update={"engines": engines})
        for service in services:
            setting, _, url = service.partition("=")
            recipe.environment.settings[setting] = url
    take_up(recipe).close()


Overrides = Annotated[list[str] | None, typer.Argument(help="key=value")]
Nodes = Annotated[int, typer.Option(min=1, help="Of the job, spares among them.")]
GpuMemory = Annotated[float, typer.Option(callback=number(), help="GiB of a GPU that can be used.")]
Services = Annotated[list[str] | None, typer.Option(help="SETTING=URL of one that the job starts.")]
Data = Annotated[Path | None, typer.Option(help="A folder that slurm/prepare.sh prepared (EMPG_DATA).")]
Miniature = Annotated[bool, typer.Option("--miniature", help="Train on the miniature (EMPG_MINIATURE).")]
Play = Annotated[bool, typer.Option("--play", help="Play one question without a policy, and show it.")]


@dataclass(frozen=True)
class TaskArguments:
    """What a Slurm job asks; the answer is the plan of the run, a line of JSON."""

    command: Literal["check", "plan", "prepare"]
    recipe: Path
    nodes: Nodes
    gpus_per_node: Annotated[int, typer.Option()]
    overrides: Overrides = None
    trainer_nodes: Annotated[int | None, typer.Option()] = None
    rollout_nodes: Annotated[int | None, typer.Option()] = None
    engines_per_node: Annotated[int | None, typer.Option()] = None
    cpu: Annotated[bool, typer.Option("--cpu")] = False
    gpu_memory: GpuMemory = 79.0
    trainer_address: Annotated[str, typer.Option()] = "127.0.0.1"
    service: Services = None
    data: Data = None
    miniature: Miniature = False
    play: Play = False


def answer(given: TaskArguments) -> RunPlan:
    """Do what is asked; the plan of the run. Raises RecipeError."""
    shape = JobShape(
        nodes=given.nodes,
        gpus_per_node=given.gpus_per_node,
        trainer_nodes=given.trainer_nodes,
        rollout_nodes=given.rollout_nodes,
        engines_per_node=given.engines_per_node,
        cpu=given.cpu,
    )
    data = DataChoice(given.data, given.miniature)
    recipe = fitted(read_recipe(given.recipe, given.overrides or [], data), shape)
    if given.command == "check":
        for note in check(recipe, None if given.cpu else given.gpu_memory * GIB):
            print(f"note: {note}", file=sys.stderr)
    if given.play and isinstance(recipe, Recipe):
        play_one_question(recipe, partial(print, file=sys.stderr, flush=True))
    plan = plan_of(recipe)  # before the services' addresses stand in it
    if given.command == "prepare":
        prepare(recipe, given.trainer_address, given.service or [])
    return plan


def main() -> None:
    given = parse_command_line(TaskArguments)
    with told_to_the_launcher():
        print(answer(given).to_json())


if __name__ == "__main__":
    main()
