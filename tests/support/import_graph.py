"""The imports of a package, read from its source: which module names which other, where, and when."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One module names another.

    Example: ``Import("shop.till", "shop.money", "shop/till.py", 12, at_load=False)``: line 12 of shop/till.py
    imports shop.money, inside a function or for type checkers alone.
    """

    importer: str
    imported: str
    file: str
    line: int
    at_load: bool
    """Whether loading the importer runs the import."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.imported}"


def modules_of(package: Path) -> dict[str, Path]:
    """Dotted names of a package's modules, the package itself among them, with their files."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        words = list(path.relative_to(package.parent).with_suffix("").parts)
        if words[-1] == "__init__":
            words.pop()
        found[".".join(words)] = path
    return found


def imports_of(package: Path) -> list[Import]:
    """Every import within the package. Raises AssertionError for a relative import, which hides where it leads."""
    modules = modules_of(package)
    found = []
    for name, path in modules.items():
        reader = _Reader(name, str(path.relative_to(package.parent)), modules)
        reader.visit(ast.parse(path.read_text(encoding="utf-8")))
        found += reader.found
    return found


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A way from a node back to itself, that node first and last; empty where there is none."""
    done: set[str] = set()
    for start in graph:
        way = _way_back(start, graph, done, [])
        if way:
            return way
    return []


def _way_back(node: str, graph: Mapping[str, set[str]], done: set[str], path: list[str]) -> list[str]:
    if node in path:
        return [*path[path.index(node) :], node]
    if node in done:
        return []
    for following in sorted(graph.get(node, ())):
        way = _way_back(following, graph, done, [*path, node])
        if way:
            return way
    done.add(node)
    return []


def packages_around(module: str) -> Iterator[str]:
    """The packages that a module lies in, the innermost first; Python loads each before the module."""
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


class _Reader(ast.NodeVisitor):
    """Collects the imports of one module."""

    def __init__(self, importer: str, file: str, modules: Mapping[str, Path]) -> None:
        self.found: list[Import] = []
        self._importer = importer
        self._file = file
        self._modules = modules
        self._at_load = True

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            self._note(name.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"{self._file}:{node.lineno}: imports are written out, without leading dots"
        for name in node.names:
            inner = f"{node.module}.{name.name}"
            self._note(inner if inner in self._modules else str(node.module), node.lineno)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._later(node.body)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._later(node.body)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            self._later(node.body)
        else:
            for child in node.body:
                self.visit(child)
        for child in node.orelse:
            self.visit(child)

    def _later(self, body: list[ast.stmt]) -> None:
        before = self._at_load
        self._at_load = False
        for child in body:
            self.visit(child)
        self._at_load = before

    def _note(self, imported: str, line: int) -> None:
        if imported in self._modules and imported != self._importer:
            self.found.append(Import(self._importer, imported, self._file, line, self._at_load))
