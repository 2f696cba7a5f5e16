"""Arguments that several subcommands share."""

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Keys to change, as section.key=value (values in YAML).")
]
