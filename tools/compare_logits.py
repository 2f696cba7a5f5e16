"""Compare what two checkpoints of one model compute: the same as `empg convert compare`.

python tools/compare_logits.py SRC_A SRC_B [--sequences 4 --length 64]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import typer

from megatron_empg.cli import convert, main

if __name__ == "__main__":
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command()(convert.compare)
    main(command)
