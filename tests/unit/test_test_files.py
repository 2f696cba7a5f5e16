"""How files of `tests` are named, and how they import each other."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import LONGEST

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
FILES = sorted(TESTS.rglob("*.py"))
SHARED = {path.stem for path in FILES} - {"conftest", "pynvml"}
"""Names of modules below `tests`; pynvml stands in for a library of that name."""


def imported(statement: ast.stmt) -> list[str]:
    """Dotted names of the modules that a statement imports; those of `from` with what it takes of them."""
    if isinstance(statement, ast.Import):
        return [name.name for name in statement.names]
    if isinstance(statement, ast.ImportFrom):
        module = "." * statement.level + (statement.module or "")
        return [f"{module}.{name.name}" for name in statement.names]
    return []


def bare_imports(text: str) -> list[str]:
    """Imports of a module below `tests` that do not begin with `tests`."""
    found = []
    for statement in ast.walk(ast.parse(text)):
        if isinstance(statement, ast.stmt):
            found += [name for name in imported(statement) if name.split(".")[0] in SHARED | {""}]
    return found


def imports_of_test_files(text: str) -> list[str]:
    """Imports of test files, inside functions excepted: those gather cases."""
    found = []
    for statement in ast.parse(text).body:
        for name in imported(statement):
            words = name.split(".")
            if words[0] == "tests" and any(word.startswith("test_") for word in words):
                found.append(name)
    return found


def with_place(look: str) -> Iterator[str]:
    looks = {"bare": bare_imports, "of tests": imports_of_test_files}
    for path in FILES:
        for name in looks[look](path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(ROOT)} imports {name}"


def test_what_tests_share_is_imported_by_its_whole_name() -> None:
    assert list(with_place("bare")) == []


def test_no_test_file_imports_another() -> None:
    assert list(with_place("of tests")) == []


def test_names_of_test_files_are_unique() -> None:
    often = Counter(path.name for path in FILES if path.name != "conftest.py")
    assert [name for name, count in often.items() if count > 1] == []


def test_files_that_begin_first_are_there() -> None:
    names = {path.name for path in FILES}
    assert [name for name in LONGEST if name not in names] == []


def test_planted_imports_are_found() -> None:
    planted = "import models, os\nfrom batches import one\nfrom . import ranks\ndef late():\n    import crowd\n"
    assert bare_imports(planted) == ["models", "batches.one", "..ranks", "crowd"]
    planted = "from tests.unit.test_a import b\nfrom tests.unit import test_c\nimport tests.unit.test_d\n"
    assert imports_of_test_files(planted) == ["tests.unit.test_a.b", "tests.unit.test_c", "tests.unit.test_d"]
