"""`empg plan`: whether a recipe fits, in which layout it is fastest, and how its steps would pass."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_empg.cli.arguments import Overrides, RecipePath
from megatron_empg.common.options import number


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="GPUs in all, the trainer's and the engines'. Without --simulate it is needed."),
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(callback=number(above=0), help="GiB of a GPU; its data sheet's if not given.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="A100, H100, H200 or B200.")] = "H100",
    trainer_gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs of the trainer; all but the recipe's engines' if not given.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Simulate steps of the recipe as it stands, episode by episode.")
    ] = False,
    max_lag: Annotated[
        int | None,
        typer.Option(min=0, max=64, help="With --simulate: lags up to this one; rollout.max_lag if not given."),
    ] = None,
    from_run: Annotated[
        Path | None, typer.Option("--from", help="With --simulate: a run folder, for lengths, latencies, speeds.")
    ] = None,
    engine_rates: Annotated[
        Path | None, typer.Option(help="With --simulate: measured rates of an engine, as JSON.")
    ] = None,
    tool_latency: Annotated[
        Path | None,
        typer.Option(help="With --simulate and --from: seconds of the environment's answers, as JSON."),
    ] = None,
    vary: Annotated[
        bool, typer.Option("--vary", help="With --simulate and a lag: each assumption 30% less and more.")
    ] = False,
    choose: Annotated[
        bool, typer.Option("--choose", help="With --simulate: other splits of the nodes and larger batches too.")
    ] = False,
) -> None:
    """Whether a recipe fits so many GPUs, in which layout it is fastest, and why others do not fit."""
    if simulate:
        from megatron_empg.planner.simulation.report import Wanted, print_simulation

        if gpus is not None or trainer_gpus is not None:
            raise typer.BadParameter(
                "with --simulate the GPUs are the recipe's (actor.*, engines.*), which overrides change; leave "
                "out --gpus and --trainer-gpus"
            )
        wanted = Wanted(max_lag, from_run, engine_rates, tool_latency, vary, choose)
        print_simulation(recipe, overrides or [], gpu_memory, gpu, wanted, as_json=json)
        return
    given = {
        "--max-lag": max_lag,
        "--from": from_run,
        "--engine-rates": engine_rates,
        "--tool-latency": tool_latency,
    }
    switches = {"--vary": vary or None, "--choose": choose or None}
    idle = [name for name, value in {**given, **switches}.items() if value is not None]
    if idle:
        raise typer.BadParameter(f"{', '.join(idle)}: say --simulate too, without which that does nothing")
    if gpus is None:
        raise typer.BadParameter("Missing option '--gpus': how many GPUs there are in all")
    from megatron_empg.planner.report import print_plan

    fits = print_plan(recipe, overrides or [], gpus, gpu_memory, gpu, trainer_gpus, as_json=json)
    raise typer.Exit(0 if fits else 1)
