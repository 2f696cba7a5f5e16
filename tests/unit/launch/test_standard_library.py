"""The launcher's part on the batch host needs Python 3.9 and its standard library, nothing else."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ENTRIES = ("supervisor", "restart", "commands", "job")
OLD_PYTHON = Path.home() / ".pyenv/versions/3.9.18/bin/python"
OF_LATER_PYTHONS = {"StrEnum", "UTC", "Self", "override", "tomllib", "pairwise"}
ENTRY_MODULES = [f"megatron_empg.launch.{name}" for name in ENTRIES]


def file_of(module: str) -> Path | None:
    """The file of one of our modules."""
    path = ROOT / module.replace(".", "/")
    for found in (path.with_suffix(".py"), path / "__init__.py"):
        if found.is_file():
            return found
    return None


def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import, at the top or inside; those for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def closure() -> dict[str, Path]:
    """Our modules that are reached from the entries, the packages around them too."""
    found: dict[str, Path] = {}
    waiting = list(ENTRY_MODULES)
    while waiting:
        module = waiting.pop()
        path = file_of(module)
        if module in found or path is None:
            continue
        found[module] = path
        ours = {name for name in imports_of(path) if name.split(".")[0] == "megatron_empg"}
        words = module.split(".")
        waiting += [*ours, *(".".join(words[:length]) for length in range(1, len(words)))]
    return found


CLOSURE = closure()


@pytest.mark.parametrize("module", sorted(CLOSURE))
def test_a_module_of_the_batch_host_imports_the_standard_library_alone(module: str) -> None:
    tops = {name.split(".")[0] for name in imports_of(CLOSURE[module])}
    assert tops - set(sys.stdlib_module_names) <= {"megatron_empg"}


@pytest.mark.parametrize("module", sorted(CLOSURE))
def test_a_module_of_the_batch_host_is_python_3_9(module: str) -> None:
    tree = ast.parse(CLOSURE[module].read_text(encoding="utf-8"), feature_version=(3, 9))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not names & OF_LATER_PYTHONS
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {keyword.arg for keyword in node.keywords}
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            assert not (called == "dataclass" and keywords & {"slots", "kw_only"}), module
            assert not (called == "zip" and "strict" in keywords), module


@pytest.mark.parametrize("python", [sys.executable, str(OLD_PYTHON)])
def test_it_is_imported_without_site_packages(python: str) -> None:
    if not os.access(python, os.X_OK):
        pytest.skip(f"there is no {python}: its syntax and its imports are checked above")
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(ENTRY_MODULES)}; print('well')"
    done = subprocess.run([python, "-S", "-I", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr


def test_the_rooms_of_the_batch_host_are_known() -> None:
    """So that nobody makes a module of another room part of it without knowing."""
    rooms = {module.split(".")[1] for module in CLOSURE if "." in module}
    assert rooms == {"common", "launch", "run"}
