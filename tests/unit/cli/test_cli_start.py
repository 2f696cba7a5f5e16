"""`empg` answers at once: help, and the faults of a command line, load nothing that computes."""

import subprocess
import sys

import pytest
from typer.main import get_command

from megatron_empg.cli import app

HEAVY = {"torch", "vllm", "transformers", "megatron", "numba", "matplotlib", "jinja2", "jaxtyping", "triton"}
PROGRAM = """
import sys
from megatron_empg.cli import main
try:
    main()
except SystemExit:
    print("loaded", *sorted(sys.modules))
"""


def loaded(*words: str) -> set[str]:
    """Names of the packages that a command has loaded when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=120, check=True
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("loaded "))
    return {name.split(".")[0] for name in line.split()[1:]}


@pytest.mark.parametrize("words", ["--help", "train --help", "convert --help", "plan --gpus none x", "nonsense"])
def test_help_and_faults_of_a_command_line_load_nothing_heavy(words: str) -> None:
    assert loaded(*words.split()) & HEAVY == set()


def test_every_command_has_a_module_of_its_name() -> None:
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        __import__(f"megatron_empg.cli.{name}")
