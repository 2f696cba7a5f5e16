"""Public names of the package mean one thing each, and say it in plain sentences."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "megatron_empg"
LEANING = ("Of ", "Against ", "By ", "Over ", "Into ", "Either ")
"""How a docstring begins that goes on from the name above it. A sentence needs a subject of its own."""


def modules(folder: Path) -> dict[Path, ast.Module]:
    """Every module below the folder."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}


def repeated_classes(folder: Path) -> dict[str, list[str]]:
    """Public classes that are defined more than once, and where."""
    found = defaultdict(list)
    for path, tree in modules(folder).items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(folder)))
    return {name: places for name, places in found.items() if len(places) > 1}


def public_definitions(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public classes and functions, and the public ones within those classes."""
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith(
            "_"
        ):
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node.body)


def leaning_docstrings(folder: Path) -> list[str]:
    """Public docstrings that have no subject of their own, and where they are."""
    found = []
    for path, tree in modules(folder).items():
        for node in public_definitions(tree.body):
            if (ast.get_docstring(node) or "").startswith(LEANING):
                found.append(f"{path.relative_to(folder)}:{node.lineno} {node.name}")
    return found


def test_a_public_class_name_is_defined_once() -> None:
    assert repeated_classes(PACKAGE) == {}


def test_no_public_docstring_leans_on_its_name() -> None:
    assert leaning_docstrings(PACKAGE) == []


def test_planted_faults_are_found(tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text(
        'class Part:\n    def size(self):\n        """Of the part."""\n', encoding="utf-8"
    )
    (tmp_path / "second.py").write_text('class Part:\n    """A part."""\nclass _Own: ...\n', encoding="utf-8")
    (tmp_path / "third.py").write_text('class _Own: ...\ndef _size():\n    """Of it."""\n', encoding="utf-8")
    assert repeated_classes(tmp_path) == {"Part": ["first.py", "second.py"]}
    assert leaning_docstrings(tmp_path) == ["first.py:2 size"]
