"""Where a package reaches for what a library does not promise, read from its source."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

LIBRARIES = frozenset(
    [
        "apex",
        "fastapi",
        "jaxtyping",
        "megatron",
        "pydantic",
        "safetensors",
        "starlette",
        "tokenizers",
        "torch",
        "transformer_engine",
        "transformer_engine_torch",
        "transformers",
        "triton",
        "uvicorn",
        "vllm",
    ]
)
STANDARD_PRIVATE = frozenset(("os._exit", "sys._current_frames"))
"""Documented for all that they begin with an underscore."""
NAMED_TUPLE = frozenset(("_asdict", "_fields", "_make", "_replace"))
"""Public methods of named tuples."""
SETTABLE = frozenset(("data", "grad", "requires_grad", "encode_special_tokens"))
"""What a tensor, and a tokenizer, let everybody set."""
_PRIVATE_PATH = re.compile(rf"^({'|'.join(sorted(LIBRARIES))})(\.\w+)*\._[a-zA-Z]\w*")


@dataclass(frozen=True)
class Reach:
    """One place. Example: ``Reach("actor/model.py", 12, "a private name of a library", "torch._C")``."""

    file: str
    line: int
    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}: {self.rule}"


PRIVATE = "a private name of a library is reached in megatron_empg/upstream alone, by a function with a record"
REPLACED = "something of a library is replaced or set in megatron_empg/upstream alone, by a function with a record"


def reaches(package: Path, leave_out: str) -> list[Reach]:
    """All places of the package's modules, those of the folder ``leave_out`` excepted."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))}
    own = set().union(*(_defined(tree) for tree in trees.values()))
    found: list[Reach] = []
    for path, tree in trees.items():
        if package / leave_out not in path.parents:
            scan = _Scan(str(path.relative_to(package.parent)), own)
            scan.visit(tree)
            found += scan.found
    return found


def _defined(tree: ast.AST) -> set[str]:
    """Private names that a module gives to something of its own."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _root(node) in ("self", "cls")
        ):
            names.add(node.attr)
    return {name for name in names if _is_private(name)}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def _root(node: ast.AST) -> str | None:
    """The name at the bottom of a chain of attributes, calls and indices."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


@dataclass
class _Scan(ast.NodeVisitor):
    file: str
    own: set[str]
    found: list[Reach] = field(default_factory=list)
    bound: list[set[str]] = field(default_factory=lambda: [set()])
    """Names that stand for a library or something it made, for each scope that is open."""

    def _note(self, node: ast.expr | ast.stmt, rule: str, what: str = "") -> None:
        self.found.append(Reach(self.file, node.lineno, rule, what or ast.unparse(node)))

    def _of_library(self, node: ast.AST) -> bool:
        root = _root(node)
        return any(root in names for names in self.bound)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.bound.append(set())
        self.generic_visit(node)
        self.bound.pop()

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.bound.append(set())
        self.generic_visit(node)
        self.bound.pop()

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            if name.name.split(".")[0] in LIBRARIES:
                self.bound[-1].add(name.asname or name.name.split(".")[0])
                if any(map(_is_private, name.name.split("."))):
                    self._note(node, PRIVATE)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = (node.module or "").split(".")
        if module[0] not in LIBRARIES or node.level:
            return
        for name in node.names:
            self.bound[-1].add(name.asname or name.name)
            if any(map(_is_private, [*module, name.name])):
                self._note(node, PRIVATE)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if _is_private(node.attr) and isinstance(node.ctx, ast.Load):
            standard = ast.unparse(node) in STANDARD_PRIVATE or node.attr in NAMED_TUPLE
            if self._of_library(node) or (node.attr not in self.own and not standard):
                self._note(node, PRIVATE)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._assigned(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self._assigned(node.target, node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.generic_visit(node)
        self._assigned(node.target, None)

    def visit_Delete(self, node: ast.Delete) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._assigned(target, None)

    def _assigned(self, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            for each in target.elts:
                self._assigned(each, value)
        elif isinstance(target, ast.Name):
            made = isinstance(value, ast.Call | ast.Attribute) and self._of_library(value)
            (self.bound[-1].add if made else self.bound[-1].discard)(target.id)
        elif isinstance(target, ast.Attribute):
            self._attribute_assigned(target)
        elif ast.unparse(target).startswith("sys.modules["):
            self._note(target, REPLACED)

    def _attribute_assigned(self, target: ast.Attribute) -> None:
        own = _root(target) in ("self", "cls") and isinstance(target.value, ast.Name)
        if own or target.attr in SETTABLE:
            return
        stranger = _is_private(target.attr) and target.attr not in self.own
        if self._of_library(target) or stranger or target.attr == "forward":
            self._note(target, REPLACED)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("setattr", "delattr") and node.args and self._of_library(node.args[0]):
            self._note(node, REPLACED)
        if name in ("getattr", "hasattr", "setattr") and len(node.args) > 1:
            asked = node.args[1]
            text = asked.value if isinstance(asked, ast.Constant) and isinstance(asked.value, str) else ""
            if _is_private(text) and (text not in self.own or self._of_library(node.args[0])):
                self._note(node, PRIVATE)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and _PRIVATE_PATH.match(node.value):
            self._note(node, PRIVATE)
