"""`python -m megatron_empg.cli`: the `empg` command."""

from megatron_empg.cli.app import main

main()
