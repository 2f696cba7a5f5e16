"""Text files are read and written as UTF-8, whatever the locale says."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("megatron_empg", "tools", "bench") for path in (ROOT / folder).rglob("*.py"))
MODES = {"open": 1, "fdopen": 1}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_is_opened_with_an_encoding(path: Path) -> None:
    assert list(without_encoding(path.read_text(encoding="utf-8"))) == [], 'say encoding="utf-8"'


@pytest.mark.parametrize(
    "code",
    ["p.read_text()", "p.read_text(errors='replace')", "p.write_text(t)", "p.open()", "p.open('a')", "open(p)",
     "open(p, 'w')", "os.fdopen(f, 'w')", "tempfile.NamedTemporaryFile('w')", "p.open(mode='r+')"],
)  # fmt: skip
def test_a_missing_encoding_is_seen(code: str) -> None:
    assert list(without_encoding(code)) == [1]


@pytest.mark.parametrize(
    "code",
    ["p.read_text('utf-8')", "p.read_text(encoding='utf-8')", "p.write_text(t, encoding='utf-8')", "p.open('rb')",
     "open(p, 'wb')", "p.open(mode='ab')", "tempfile.TemporaryFile(dir=d)", "folder.open(recipe)"],
)  # fmt: skip
def test_bytes_and_other_things_that_open_need_none(code: str) -> None:
    assert list(without_encoding(code)) == []


def without_encoding(code: str) -> Iterator[int]:
    """Lines that read or write text without one."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and opens_text(node) and not has_encoding(node):
            yield node.lineno


def opens_text(call: ast.Call) -> bool:
    name, method = getattr(call.func, "attr", getattr(call.func, "id", "")), isinstance(call.func, ast.Attribute)
    if name in ("read_text", "write_text"):
        return True
    if name in ("NamedTemporaryFile", "TemporaryFile"):
        return "w" in mode_of(call, 0, "w+b") and "b" not in mode_of(call, 0, "w+b")
    if name == "fdopen" or (name == "open" and not method):
        return "b" not in mode_of(call, 1, "r")
    if name != "open":
        return False
    mode = mode_of(call, 0, "r")
    return "b" not in mode and bool(mode) and set(mode) <= set("rwax+t")


def mode_of(call: ast.Call, place: int, default: str) -> str:
    """The mode given; empty when it is no literal, so that something else than a file may be opened."""
    given = [word.value for word in call.keywords if word.arg == "mode"] or call.args[place : place + 1]
    if not given:
        return default
    return str(given[0].value) if isinstance(given[0], ast.Constant) else ""


def has_encoding(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", "")
    place = {"read_text": 0, "write_text": 1}.get(name)
    return any(word.arg == "encoding" for word in call.keywords) or (place is not None and len(call.args) > place)
