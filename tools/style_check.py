"""Hold every package to ceilings of density: a statement says one thing, a function fits a screen.

python tools/style_check.py [--densest PACKAGE]. Exit code 1 if a package is above a ceiling. `--densest` lists the
statements of a package that are worth unpacking, largest first.

Four figures for each package of `megatron_empg`; imports and docstrings do not count as statements:

- packed: comprehensions, ternaries, walruses and lambdas per 100 statements;
- p95: the 95th percentile of syntax nodes per statement, without the statements inside it;
- large: percent of statements with more than `LARGE` nodes;
- long: functions of more than `SCREEN` lines.

A ceiling is what was true when it was last lowered, rounded up; it may be lowered and is never raised. `TARGET` is
the aim for every package. Standard library only, so that it runs before anything is installed.
"""

import argparse
import ast
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "megatron_empg"
LARGE = 40
"""Syntax nodes of a statement above which it is counted as large."""
SCREEN = 50
"""Lines of a function that fit a screen."""
WHOLE = "all"
PACKED = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.IfExp, ast.NamedExpr, ast.Lambda)


@dataclass(frozen=True)
class Density:
    """How dense a package is, or how dense it may be. Example: ``Density(6.2, 17, 0.3, 0)``."""

    packed: float
    """Packed expressions per 100 statements."""
    p95: int
    """Syntax nodes per statement, 95th percentile."""
    large: float
    """Percent of statements with more than `LARGE` nodes."""
    long: int
    """Functions of more than `SCREEN` lines."""


TARGET = Density(packed=7, p95=20, large=0.4, long=0)

# Packed, p95, large, long; the target of each: 7, 20, 0.4, 0.
CEILINGS: dict[str, Density] = {
    WHOLE: Density(6, 18, 0.3, 0),
    "actor": Density(7, 19, 0.4, 0),
    "algorithms": Density(4, 20, 0.4, 0),
    "cli": Density(5, 22, 0.7, 0),  # signatures: a parameter for each option
    "cluster": Density(7, 19, 0.1, 0),
    "common": Density(4, 16, 0.2, 0),
    "environments": Density(5, 17, 0.2, 0),
    "evaluate": Density(6, 17, 0.4, 0),
    "launch": Density(5, 17, 0.4, 0),
    "planner": Density(6, 18, 0.4, 0),
    "prepare": Density(5, 17, 0, 0),
    "recipe": Density(6, 18, 0.3, 0),
    "report": Density(7, 18, 0.4, 0),
    "rollout": Density(7, 17, 0.2, 0),
    "run": Density(6, 19, 0.8, 0),  # tables of metrics
    "study": Density(7, 20, 0.4, 0),
    "trainer": Density(6, 18, 0, 0),
    "upstream": Density(7, 24, 0, 0),  # signatures of patched functions
    "vocab_parallel": Density(3, 22, 0.7, 0),  # signatures, and kernels
    "weights": Density(7, 18, 0.3, 0),
}
"""By package below `megatron_empg`; `WHOLE` is all of them together."""


@dataclass(frozen=True)
class Statement:
    """A statement and how much it says."""

    file: Path
    line: int
    nodes: int
    packed: int


@dataclass(frozen=True)
class Reading:
    """What was counted in some files."""

    statements: list[Statement]
    long_functions: list[str]
    """``file:line name (lines)``."""

    @property
    def density(self) -> Density:
        """Raises ValueError where there is no statement."""
        if not self.statements:
            raise ValueError("no statement was read: give a folder with Python files")
        count = len(self.statements)
        sizes = sorted(statement.nodes for statement in self.statements)
        packed = sum(statement.packed for statement in self.statements)
        large = sum(size > LARGE for size in sizes)
        rank = math.ceil(0.95 * count)
        return Density(100 * packed / count, sizes[rank - 1], 100 * large / count, len(self.long_functions))


def read(files: list[Path]) -> Reading:
    """Count the statements and functions of Python files."""
    statements: list[Statement] = []
    long_functions: list[str] = []
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > SCREEN:
                    long_functions.append(f"{file}:{node.lineno} {node.name} ({lines} lines)")
            if isinstance(node, ast.stmt) and counts(node):
                statements.append(statement_of(file, node))
    return Reading(statements, long_functions)


def counts(node: ast.stmt) -> bool:
    """Whether a statement says anything: imports and docstrings do not."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return False
    return not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def statement_of(file: Path, node: ast.stmt) -> Statement:
    own = list(own_nodes(node))
    packed = sum(isinstance(part, PACKED) for part in own)
    return Statement(file, node.lineno, len(own), packed)


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The node and what hangs below it, without the statements inside it and without load and store marks."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.stmt, ast.expr_context)):
            yield from own_nodes(child)


def files_of(package: str) -> list[Path]:
    """The Python files of a package, ``weights/sync`` for instance, or of the `WHOLE`."""
    folder = ROOT / PACKAGE
    if package != WHOLE:
        folder /= package
    return [path.relative_to(ROOT) for path in sorted(folder.rglob("*.py"))]


def packages() -> list[str]:
    """The whole, and every package at the top."""
    found = [path.parent.name for path in sorted((ROOT / PACKAGE).glob("*/__init__.py"))]
    return [WHOLE, *found]


def faults(name: str, density: Density, ceiling: Density) -> list[str]:
    """A line for each figure above its ceiling."""
    found = []
    for figure in fields(Density):
        value, most = getattr(density, figure.name), getattr(ceiling, figure.name)
        if value > most:
            found.append(f"{name}: {figure.name} is {value:.4g}, above its ceiling {most:g}")
    return found


def line(name: str, density: Density, ceiling: Density) -> str:
    told = (f"{getattr(density, f.name):6.4g} ({getattr(ceiling, f.name):g})" for f in fields(Density))
    return f"{name:16}" + "".join(f"{cell:>17}" for cell in told)


def densest(package: str) -> Iterator[str]:
    """``file:line nodes packed`` of the statements to unpack first; then the functions longer than a screen."""
    reading = read(files_of(package))
    chosen = [found for found in reading.statements if found.nodes > LARGE or found.packed > 1]
    for found in sorted(chosen, key=lambda each: -each.nodes):
        yield f"{found.file}:{found.line} {found.nodes} nodes, {found.packed} packed"
    yield from reading.long_functions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--densest", metavar="PACKAGE", help="list the statements of a package to unpack first")
    package = parser.parse_args().densest
    if package is not None:
        print("\n".join(densest(package)))
        return
    found: list[str] = []
    print(f"{'package (ceiling)':16}" + "".join(f"{figure.name:>17}" for figure in fields(Density)))
    for name in packages():
        density = read(files_of(name)).density
        if name not in CEILINGS:
            found.append(f"{name}: no ceiling: add it to CEILINGS in tools/style_check.py, at most {TARGET}")
            continue
        print(line(name, density, CEILINGS[name]))
        found += faults(name, density, CEILINGS[name])
    if found:
        found.append("unpack what `python tools/style_check.py --densest PACKAGE` lists into named steps")
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
