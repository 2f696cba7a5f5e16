"""`empg report`: the page of a run."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    step: Annotated[
        int | None, typer.Option(min=1, help="The step whose timeline is drawn; the last one by default.")
    ] = None,
) -> None:
    """Write RUN/report.html anew from what the run has logged so far."""
    from megatron_empg.report.page import write_report
    from megatron_empg.run.folder import NotARunError, RunFolder

    folder = RunFolder(run)
    if not folder.recipe.exists() and not folder.metrics.exists():
        raise NotARunError(
            f"{run} is not a run folder: it has neither {folder.recipe.name} nor {folder.metrics.name}"
        )

    typer.echo(write_report(run, step))
