"""The `empg` command: its subcommands, and what is said of their faults.

A subcommand imports what it runs when it runs: `empg --help` and every fault of a command line come at once.
"""

import errno

import typer

from megatron_empg.cli import convert
from megatron_empg.cli.environments import environments
from megatron_empg.cli.evaluate import evaluate
from megatron_empg.cli.index import index
from megatron_empg.cli.plan import plan
from megatron_empg.cli.preflight import preflight
from megatron_empg.cli.report import report
from megatron_empg.cli.sft import sft
from megatron_empg.cli.study import study
from megatron_empg.cli.table import table
from megatron_empg.cli.train import train
from megatron_empg.cli.watch import watch
from megatron_empg.common.errors import told_plainly
from megatron_empg.common.options import CheckedApp

OF_AN_EXTRA = ("torch", "megatron", "vllm")
"""Modules that an installation without extras lacks."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

app = CheckedApp(
    help="Train long-horizon LLM agents by entropy-modulated policy gradients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for command in (train, sft, evaluate, watch, report, table, study, plan, preflight, environments, index):
    app.command()(command)
app.add_typer(convert.app, name="convert")


def main(command: typer.Typer = app) -> None:
    """Run the command; faults that a user can fix are one message, without a traceback."""
    try:
        with told_plainly():
            command()
    except ModuleNotFoundError as error:
        if error.name not in OF_AN_EXTRA:
            raise
        typer.echo(
            f"error: this command needs {error.name}, which is not installed: "
            "pip install 'megatron_empg[cpu]' or 'megatron_empg[gpu]', as README.md says",
            err=True,
        )
        raise SystemExit(1) from None
    except OSError as error:
        # A file or folder that is not there, not ours to read or write, or on a full disk, whose writes name none.
        if error.filename is None and error.errno not in FULL_DISK:
            raise
        where = ""
        if error.filename:
            where = f"{error.filename}: "
        typer.echo(f"error: {where}{error.strerror}", err=True)
        raise SystemExit(1) from None
