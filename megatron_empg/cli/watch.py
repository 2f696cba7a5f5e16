"""`empg watch`: a run in the terminal."""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from megatron_empg.common.options import number

Run = Annotated[Path, typer.Argument(help="A run folder; also one on a file system that others write to.")]
Once = Annotated[bool, typer.Option("--once", help="Print one frame and end.")]
Every = Annotated[float, typer.Option(callback=number(above=0), help="Seconds between two looks at the folder.")]


def watch(run: Run, once: Once = False, every: Every = 2.0) -> None:
    """Show how far RUN is and how it does, from its folder alone, until it has finished or Ctrl-C."""
    from rich.console import Console

    from megatron_empg.run.watch import screen
    from megatron_empg.run.watch.view import WatchedRun

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a log may have letters that the terminal has not
    screen.watch(WatchedRun(run), Console(highlight=False), every=every, once=once)
