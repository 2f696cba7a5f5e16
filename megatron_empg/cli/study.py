"""`empg study`: methods compared over tasks and seeds."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_empg.common.options import number

StudyPath = Annotated[Path, typer.Argument(help="A study, e.g. studies/screening.yaml.")]
Minutes = Annotated[
    float | None,
    typer.Option(
        callback=number(above=0), help="After these no run is begun, and the running one ends at a checkpoint."
    ),
]
Quick = Annotated[
    bool, typer.Option("--quick", help="The study's quick part alone; its runs count for the whole.")
]
Report = Annotated[
    bool, typer.Option("--report", help="Write the page and charts of what has ended; run nothing.")
]
List = Annotated[bool, typer.Option("--list", help="Show how far each run is; run nothing.")]


def study(
    file: StudyPath, minutes: Minutes = None, quick: Quick = False, report: Report = False, progress: List = False
) -> None:
    """Make a study's runs, one after the other. The same command goes on after any end; two share the runs."""
    from megatron_empg.study.cells import RUNS, cells_of, settings_of
    from megatron_empg.study.config import load_study
    from megatron_empg.study.page import write_report
    from megatron_empg.study.progress import progress_lines
    from megatron_empg.study.results import read_results
    from megatron_empg.study.runner import StudyRunner

    if report and progress:
        raise typer.BadParameter("--report and --list run nothing, each in its own way; give one")
    asked = load_study(file)
    cells = cells_of(asked, quick=quick)
    runs = RUNS / file.stem
    if report:
        for path in write_report(asked):
            typer.echo(path)
        return
    if not progress:
        settings = settings_of(asked, cells)
        ends = float("inf") if minutes is None else minutes
        StudyRunner(asked, settings, runs, minutes=ends, say=typer.echo).run(cells)
    for line in progress_lines(cells, read_results(asked.results), runs):
        typer.echo(line)
