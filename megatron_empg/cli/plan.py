"""`empg plan`: whether a recipe fits, in which layout it is fastest, and how its steps would pass."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from megatron_empg.cli.arguments import Overrides, RecipePath
from megatron_empg.common.options import number

Gpus = Annotated[
    int | None,
    typer.Option(min=1, help="GPUs in all, the trainer's and the engines'. Without --simulate it is needed."),
]
GpuMemory = Annotated[
    float | None, typer.Option(callback=number(above=0), help="GiB of a GPU; its data sheet's if not given.")
]
Gpu = Annotated[str, typer.Option(help="A100, H100, H200 or B200.")]
TrainerGpus = Annotated[
    int | None, typer.Option(min=1, help="GPUs of the trainer; all but the recipe's engines' if not given.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]
Simulate = Annotated[
    bool, typer.Option("--simulate", help="Simulate steps of the recipe as it stands, episode by episode.")
]
MaxLag = Annotated[
    int | None,
    typer.Option(min=0, max=64, help="With --simulate: lags up to this one; rollout.max_lag if not given."),
]
FromRun = Annotated[
    Path | None, typer.Option("--from", help="With --simulate: a run folder, for lengths, latencies, speeds.")
]
EngineRates = Annotated[Path | None, typer.Option(help="With --simulate: measured rates of an engine, as JSON.")]
ToolLatency = Annotated[
    Path | None,
    typer.Option(help="With --simulate and --from: seconds of the environment's answers, as JSON."),
]
Vary = Annotated[
    bool, typer.Option("--vary", help="With --simulate and a lag: each assumption 30% less and more.")
]
Choose = Annotated[
    bool, typer.Option("--choose", help="With --simulate: other splits of the nodes and larger batches too.")
]


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    gpus: Gpus = None,
    gpu_memory: GpuMemory = None,
    gpu: Gpu = "H100",
    trainer_gpus: TrainerGpus = None,
    json: AsJson = False,
    simulate: Simulate = False,
    max_lag: MaxLag = None,
    from_run: FromRun = None,
    engine_rates: EngineRates = None,
    tool_latency: ToolLatency = None,
    vary: Vary = False,
    choose: Choose = False,
) -> None:
    """Whether a recipe fits so many GPUs, in which layout it is fastest, and why others do not fit."""
    if simulate:
        from megatron_empg.planner.simulation.report import SimulationOptions, print_simulation

        _refuse_gpus(gpus, trainer_gpus)
        wanted = SimulationOptions(max_lag, from_run, engine_rates, tool_latency, vary, choose)
        print_simulation(recipe, overrides or [], gpu_memory, gpu, wanted, as_json=json)
        return
    of_simulation = {
        "--max-lag": max_lag is not None,
        "--from": from_run is not None,
        "--engine-rates": engine_rates is not None,
        "--tool-latency": tool_latency is not None,
        "--vary": vary,
        "--choose": choose,
    }
    _refuse_what_only_simulation_reads(of_simulation)
    if gpus is None:
        raise typer.BadParameter("Missing option '--gpus': how many GPUs there are in all")
    from megatron_empg.planner.report import print_plan

    fits = print_plan(recipe, overrides or [], gpus, gpu_memory, gpu, trainer_gpus, as_json=json)
    raise typer.Exit(0 if fits else 1)


def _refuse_gpus(gpus: int | None, trainer_gpus: int | None) -> None:
    """Raises typer.BadParameter where a simulation is told of GPUs, which the recipe names."""
    if gpus is None and trainer_gpus is None:
        return
    raise typer.BadParameter(
        "with --simulate the GPUs are the recipe's (actor.*, engines.*), which overrides change; leave "
        "out --gpus and --trainer-gpus"
    )


def _refuse_what_only_simulation_reads(given: Mapping[str, bool]) -> None:
    """`given`: whether each of the simulation's options was. Raises typer.BadParameter that names them."""
    idle = [name for name, was_given in given.items() if was_given]
    if idle:
        raise typer.BadParameter(f"{', '.join(idle)}: say --simulate too, without which that does nothing")
