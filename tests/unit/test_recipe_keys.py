"""Every key of a recipe is read by some module that acts on it."""

import ast
from functools import cache
from pathlib import Path

import pytest

from megatron_empg.recipe import Recipe, Section, SftRecipe

PACKAGE = Path(__file__).parents[2] / "megatron_empg"

HANDED_ON = {
    # Given as keywords to what has parameters or fields of the same names.
    "actor.optimizer": "actor/optimizer.py",
    "algorithm.empg": "algorithms/empg.py",
}
"""Sections that are passed on as keywords, and the module that reads them."""

IN_RECIPE = {
    "limits": "read by waits.nested_waits, or by properties of Recipe that others read",
}


def leaf_keys(kind: type[Section], above: str = "") -> list[str]:
    found = []
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += leaf_keys(field.annotation, f"{above}{name}.")
        else:
            found.append(above + name)
    return found


KEYS = sorted({*leaf_keys(Recipe), *leaf_keys(SftRecipe)})


@cache
def attributes_read() -> dict[str, set[str]]:
    """{attribute: names of what it is read from, the last of each chain} in all modules but recipe.py."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if path == PACKAGE / "recipe.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.setdefault(node.attr, set()).add(name_of(node.value))
    return found


def name_of(node: ast.AST) -> str:
    """`c` for both `a.b.c` and `c`."""
    return getattr(node, "attr", None) or getattr(node, "id", None) or ""


ALIASES = {"settings", "recipe"}
"""Names that modules give to a section beside its own."""


def owners(key: str) -> set[str]:
    """Names under which a section is read: its own, and what modules call it."""
    section = key.split(".")[-2]
    also = {"grpo": {"base", "algorithm"}, "dapo": {"base"}, "optimizer": set()}.get(section, set())
    return {section, *ALIASES, *also}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_read_by_a_module_that_acts_on_it(key: str) -> None:
    section, _, name = key.rpartition(".")
    if section in HANDED_ON:
        tree = ast.parse((PACKAGE / HANDED_ON[section]).read_text(encoding="utf-8"))
        reads = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)]
        assert name in map(name_of, reads), f"{key} is read nowhere"
        return
    if section in IN_RECIPE and name_in_recipe(name):
        return
    assert owners(key) & attributes_read().get(name, set()), f"{key} is read nowhere: use it, or take it away"


def name_in_recipe(name: str) -> bool:
    """Whether recipe.py or waits.py reads the attribute."""
    trees = [ast.parse((PACKAGE / file).read_text(encoding="utf-8")) for file in ("recipe.py", "waits.py")]
    return any(isinstance(node, ast.Attribute) and node.attr == name for tree in trees for node in ast.walk(tree))
