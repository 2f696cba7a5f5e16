"""The `empg` command."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_empg.cli import convert
from megatron_empg.cli.environments import environments
from megatron_empg.cli.index import index
from megatron_empg.cli.preflight import preflight
from megatron_empg.common.options import number

app = typer.Typer(
    help="Train long-horizon LLM agents by entropy-modulated policy gradients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(convert.app, name="convert")
app.command()(preflight)
app.command()(environments)
app.command()(index)

RecipePath = Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Keys to change, as section.key=value (values in YAML).")
]


@app.command()
def train(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Reinforcement learning. The same command continues an interrupted run."""
    from megatron_empg.launch.local import launch_training

    launch_training(recipe, overrides or [])


@app.command()
def sft(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Supervised warm-up on the environment's scripted walkthroughs."""
    from megatron_empg.launch.local import launch_sft

    launch_sft(recipe, overrides or [])


@app.command()
def evaluate(
    recipe: RecipePath,
    overrides: Overrides = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="A model folder, a run or a checkpoint instead of the recipe's model.path; several are compared "
            "with the first."
        ),
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="test_id or test_ood; again for both.")] = None,
    questions: Annotated[int | None, typer.Option(min=1, help="Fixed questions of each split.")] = None,
    samples: Annotated[int, typer.Option(min=1, max=1024, help="Of each question, in sampled decoding.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(callback=number(above=0), help="Of sampled decoding.")
    ] = None,
    greedy: Annotated[bool | None, typer.Option("--greedy/--no-greedy", help="Also in greedy decoding.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of sampling and of the intervals.")] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Every outcome, and a place to go on from when interrupted.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
) -> None:
    """Success on the recipe's fixed evaluation questions, with intervals, without training."""
    from megatron_empg.evaluate.launch import launch_evaluation
    from megatron_empg.evaluate.options import EvaluationOptions

    options = EvaluationOptions(
        tuple(model or ()), tuple(split or ()), questions, samples, temperature, greedy, seed, json, markdown
    )
    launch_evaluation(recipe, overrides or [], options)


@app.command()
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


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write RUN/report.html anew from what the run has logged so far."""
    from megatron_empg.report import write_report
    from megatron_empg.run.folder import RunFolder, RunFolderError

    folder = RunFolder(run)
    if not folder.recipe.exists() and not folder.metrics.exists():
        raise RunFolderError(
            f"{run} is no run folder: it has neither {folder.recipe.name} nor {folder.metrics.name}"
        )

    typer.echo(write_report(run))


def main(command: typer.Typer = app) -> None:
    """Run the command; faults a user can mend are one message, without a traceback."""
    from megatron_empg.common.errors import is_own
    from megatron_empg.recipe import RecipeError
    from megatron_empg.weights.checkpoints.errors import CheckpointError
    from megatron_empg.weights.mapping.model_config import ModelConfigError

    try:
        command()
    except (RecipeError, CheckpointError, ModelConfigError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except OSError as error:
        # A file or folder that is not there, not ours to read or write, or on a full disk.
        if error.filename is None:
            raise
        typer.echo(f"error: {error.filename}: {error.strerror}", err=True)
        raise SystemExit(1) from None
    except (RuntimeError, ValueError) as error:
        if not is_own(error):
            raise
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
