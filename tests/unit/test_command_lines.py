"""The package reads command lines with typer; what uses argparse stands here, with its reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITH_ARGPARSE = {
    "megatron_empg/environments/alfworld/generate.py": "runs in the Python of ALFWorld's engine, without typer",
    "megatron_empg/environments/alfworld/index.py": "the same",
    "megatron_empg/rollout/server.py": "hands the engine's arguments to vLLM's own parser",
}
"""By file of the package: why it may. Scripts of tools/ and bench/ are no part of the package."""


def test_argparse_is_used_where_typer_cannot_be() -> None:
    found = set()
    for path in sorted((ROOT / "megatron_empg").rglob("*.py")):
        if any("argparse" in module for module in imported(path.read_text(encoding="utf-8"))):
            found.add(str(path.relative_to(ROOT)))
    assert found == set(WITH_ARGPARSE), "read the command line with megatron_empg.common.options"


def test_what_runs_in_the_python_of_alfworld_does_without_typer() -> None:
    requirements = (ROOT / "requirements-alfworld.txt").read_text(encoding="utf-8")
    assert "typer" not in requirements, "with typer there, generate.py and index.py can use it"


def test_every_way_to_import_is_seen() -> None:
    code = "import argparse\ndef late():\n    from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
    assert list(imported(code)) == ["argparse", "vllm.utils.argparse_utils"]


def imported(code: str) -> Iterator[str]:
    """The modules that are imported, anywhere in a file."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
