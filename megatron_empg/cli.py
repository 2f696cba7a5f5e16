"""The `empg` command."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_empg import convert

app = typer.Typer(
    help="Train long-horizon LLM agents by entropy-modulated policy gradients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(convert.app, name="convert")

RecipePath = Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Keys to change, as section.key=value (values in YAML).")
]


@app.command()
def train(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Reinforcement learning. The same command continues an interrupted run."""
    from megatron_empg.trainer.launch import launch_training

    launch_training(recipe, overrides or [])


@app.command()
def sft(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Supervised warm-up on the environment's scripted walkthroughs."""
    from megatron_empg.trainer.launch import launch_sft

    launch_sft(recipe, overrides or [])


@app.command()
def evaluate(
    recipe: RecipePath,
    overrides: Overrides = None,
    model: Annotated[Path | None, typer.Option(help="A policy folder instead of the recipe's model.path.")] = None,
) -> None:
    """Success on the recipe's fixed evaluation questions, without training."""
    from megatron_empg.trainer.launch import launch_evaluation

    launch_evaluation(recipe, overrides or [], model)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write RUN/report.html anew from what the run has logged so far."""
    from megatron_empg.trainer.report import write_report

    typer.echo(write_report(run))


def main(command: typer.Typer = app) -> None:
    """Run the command; faults a user can mend are one message, without a traceback."""
    from megatron_empg.recipe import RecipeError
    from megatron_empg.weights.errors import CheckpointError
    from megatron_empg.weights.model_config import ModelConfigError

    try:
        command()
    except (RecipeError, CheckpointError, ModelConfigError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if type(error).__module__.partition(".")[0] != "megatron_empg":
            raise
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
