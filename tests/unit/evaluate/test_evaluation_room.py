"""The room of evaluations stands above the trainer's: the command alone may look into it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[3] / "megatron_empg"


def imported(path: Path) -> Iterator[str]:
    """Modules that a file names in an import, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_no_module_but_the_command_imports_evaluations() -> None:
    outside = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "evaluate"]
    found = {
        str(path.relative_to(PACKAGE))
        for path in outside
        for name in imported(path)
        if name.startswith("megatron_empg.evaluate")
    }
    assert found == {"cli/evaluate.py"}


def test_the_trainer_starts_without_evaluations() -> None:
    program = (
        "import sys\n"
        "import megatron_empg.launch.local, megatron_empg.report.page\n"
        "import megatron_empg.rollout.service.rollout_service\n"
        "print([name for name in sys.modules if name.startswith('megatron_empg.evaluate')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
