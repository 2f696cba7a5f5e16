"""The `empg` command: one module for each subcommand."""

from megatron_empg.cli.app import app, main

__all__ = ["app", "main"]
