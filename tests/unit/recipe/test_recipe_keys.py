"""Every key of a recipe is read by some module that acts on it."""

import ast
from functools import cache
from pathlib import Path

import pytest

from megatron_empg.common.section import Section, choices
from megatron_empg.recipe import Recipe, SftRecipe

PACKAGE = Path(__file__).parents[3] / "megatron_empg"

IN_RECIPE = {
    "limits": "read by waits.nested_waits, or by methods of LimitsConfig that others call",
}

# (dotted key, the section that has it)
Key = tuple[str, type[Section]]


def leaf_keys(kind: type[Section], above: str = "") -> list[Key]:
    """Keys of all sections that a recipe may hold; of what several inherit, once from the class that has it."""
    found: list[Key] = []
    for name, field in kind.model_fields.items():
        siblings = choices(field.annotation)
        if siblings:
            found += [key for section in siblings.values() for key in leaf_keys(section, f"{above}{name}.")]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += leaf_keys(field.annotation, f"{above}{name}.")
        else:
            found.append((above + name, declaring(kind, name)))
    return found


def declaring(kind: type[Section], name: str) -> type[Section]:
    """The class in which the key is declared. A `name` is that of a choice, which pydantic reads."""
    owners = [base for base in kind.__mro__ if name in vars(base).get("__annotations__", {})]
    return owners[0]


KEYS = sorted({*leaf_keys(Recipe), *leaf_keys(SftRecipe)}, key=str)
OF_ALGORITHMS = [(key, section) for key, section in KEYS if ".algorithms." in section.__module__]
OTHERS = [key for key, section in KEYS if ".algorithms." not in section.__module__]


OF_RECIPES = {PACKAGE / "recipe" / name for name in ("recipe.py", "errors.py", "overrides.py", "yaml_text.py")}


@cache
def attributes_read() -> dict[str, set[str]]:
    """{attribute: names of what it is read from, the last of each chain} in all modules but those of recipes."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if path in OF_RECIPES:
            continue
        for attribute, owner in attributes(path):
            found.setdefault(attribute, set()).add(owner)
    return found


def attributes(path: Path) -> list[tuple[str, str]]:
    """(attribute, the last name of what it is read from) of every attribute that a module reads."""
    return attributes_of(ast.parse(path.read_text(encoding="utf-8")))


def attributes_of(tree: ast.AST) -> list[tuple[str, str]]:
    nodes = ast.walk(tree)
    read = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)]
    return [(node.attr, name_of(node.value)) for node in read]


def name_of(node: ast.AST) -> str:
    """`c` for both `a.b.c` and `c`."""
    return getattr(node, "attr", None) or getattr(node, "id", None) or ""


ALIASES = {"settings", "recipe"}
"""Names that modules give to a section beside its own."""


@pytest.mark.parametrize("key", OTHERS)
def test_a_key_is_read_by_a_module_that_acts_on_it(key: str) -> None:
    section, _, name = key.rpartition(".")
    if section in IN_RECIPE and name_in_recipe(name):
        return
    owners = {section.rpartition(".")[2], *ALIASES}
    readers = [owners & attributes_read().get(read, set()) for read in (name, *derived(dict(KEYS)[key], name))]
    assert any(readers), f"{key} is read nowhere: use it, or take it away"


def derived(section: type[Section], name: str) -> list[str]:
    """The section's own properties and methods that read the key, for others to read in its place."""
    tree = ast.parse(file_of(section).read_text(encoding="utf-8"))
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == section.__name__]
    functions = [node for node in ast.walk(classes[0]) if isinstance(node, ast.FunctionDef)]
    return [function.name for function in functions if (name, "self") in attributes_of(function)]


def file_of(section: type[Section]) -> Path:
    return PACKAGE.parent / (section.__module__.replace(".", "/") + ".py")


@pytest.mark.parametrize(
    ("key", "section"), OF_ALGORITHMS, ids=[f"{key}-{section.__name__}" for key, section in OF_ALGORITHMS]
)
def test_a_key_of_an_algorithm_is_read_where_it_is_declared_or_of_what_is_called_so(
    key: str, section: type[Section]
) -> None:
    """An algorithm and its parts read their own keys, in the file that declares them; the trainer reads those that
    all algorithms share as `algorithm.key`."""
    above, _, name = key.rpartition(".")
    if name == "name":
        return
    own = {owner for attribute, owner in attributes(file_of(section)) if attribute == name}
    everywhere = attributes_read().get(name, set())
    called = above.rpartition(".")[2]
    assert own & {"self", "section", called} or everywhere & {called, "algorithm", "section"}, (
        f"{key} is read nowhere"
    )


def name_in_recipe(name: str) -> bool:
    """Whether limits.py or waits.py reads the attribute."""
    files = ("common/limits.py", "common/waits.py")
    trees = [ast.parse((PACKAGE / file).read_text(encoding="utf-8")) for file in files]
    return any(isinstance(node, ast.Attribute) and node.attr == name for tree in trees for node in ast.walk(tree))


def test_the_keys_of_every_choice_are_looked_at() -> None:
    found = {key for key, _ in OF_ALGORITHMS}
    assert {
        "algorithm.modulation.k_f",
        "algorithm.gain",
        "algorithm.overlong.penalty",
        "algorithm.kl.estimator",
    } <= found
    assert len(OTHERS) > 60
