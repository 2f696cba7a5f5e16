"""`empg plan`: whether a recipe fits, in which layout it is fastest."""

from typing import Annotated

import typer

from megatron_empg.cli.arguments import Overrides, RecipePath
from megatron_empg.common.options import number


def plan(
    recipe: RecipePath,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs in all, the trainer's and the engines'.")],
    overrides: Overrides = None,
    gpu_memory: Annotated[
        float | None, typer.Option(callback=number(above=0), help="GiB of a GPU; its data sheet's if not given.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="A100, H100, H200 or B200.")] = "H100",
    trainer_gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs of the trainer; all but the recipe's engines' if not given.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Whether a recipe fits so many GPUs, in which layout it is fastest, and why others do not fit."""
    from megatron_empg.planner.report import print_plan

    fits = print_plan(recipe, overrides or [], gpus, gpu_memory, gpu, trainer_gpus, as_json=json)
    raise typer.Exit(0 if fits else 1)
