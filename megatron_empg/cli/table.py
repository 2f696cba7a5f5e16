"""`empg table`: runs beside a paper's table."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Runs = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Run folders, and documents that `empg evaluate --json` wrote."),
]
Paper = Annotated[
    Literal["empg", "gigpo", "epo", "aem", "arlarena"] | None,
    typer.Option(help="Whose numbers stand beside; else EMPG's, or all that know the environment."),
]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


def table(runs: Runs, paper: Paper = None, markdown: AsMarkdown = False, json: AsJson = False) -> None:
    """Runs as lines of a paper's table: means over seeds, intervals, and what is not comparable."""
    from json import dumps

    from megatron_empg.report.table.document import make_document
    from megatron_empg.report.table.page import json_of, text_of

    if markdown and json:
        raise typer.BadParameter("--markdown and --json are two ways to print it; give one")
    made = make_document(runs, paper)
    if json:
        typer.echo(dumps(json_of(made), ensure_ascii=False, indent=1))
    else:
        typer.echo(text_of(made, markdown=markdown))
