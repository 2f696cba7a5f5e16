"""Every key of a recipe is read by some module that acts on it."""

import ast
import inspect
from functools import cache
from pathlib import Path
from textwrap import dedent

import pytest

from megatron_empg.common.section import Section, choices
from megatron_empg.recipe import Recipe, SftRecipe

PACKAGE = Path(__file__).parents[3] / "megatron_empg"

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
"""What holds, checks and tells keys; who reads one here has not acted on it yet."""


@cache
def readers() -> dict[str, set[tuple[str, Path]]]:
    """{attribute: (what it is read from, the last name of each chain; file)} of modules other than recipes'."""
    found: dict[str, set[tuple[str, Path]]] = {}
    for path in PACKAGE.rglob("*.py"):
        if path in OF_RECIPES:
            continue
        for attribute, owner in attributes(path):
            found.setdefault(attribute, set()).add((owner, path))
    return found


def attributes_read() -> dict[str, set[str]]:
    """{attribute: names of what it is read from}"""
    return {attribute: {owner for owner, _ in found} for attribute, found in readers().items()}


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
CALLED = {"limits": {"given"}}
"""What `common.waits.nested_waits` calls the section."""


@pytest.mark.parametrize("key", OTHERS)
def test_a_key_is_read_by_a_module_that_acts_on_it(key: str) -> None:
    assert is_acted_on(key, dict(KEYS)[key]), f"{key} is read nowhere: use it, or take it away"


def is_acted_on(key: str, section: type[Section]) -> bool:
    """Whether another file reads the key, or a property or method that follows from it.

    Such a method is one of the section's own, or one of a recipe's that reads the section.
    """
    called = key.rpartition(".")[0].rpartition(".")[2]
    names = derived(section, {(key.rpartition(".")[2], "self")})
    if read_elsewhere(names, {called, *ALIASES, *CALLED.get(called, ())}, file_of(section)):
        return True
    of_section = {(name, called) for name in names}
    of_recipe = derived(Recipe, of_section) | derived(SftRecipe, of_section)
    return read_elsewhere(of_recipe, {"recipe", *ALIASES}, file_of(Recipe))


def read_elsewhere(names: set[str], owners: set[str], own: Path) -> bool:
    """Whether a file other than the section's own reads one of the names of an owner, also kept as `_owner`."""
    found = [reader for name in names for reader in readers().get(name, ())]
    return any(owner.lstrip("_") in owners for owner, path in found if path != own)


def derived(section: type[Section], read: set[tuple[str, str]]) -> set[str]:
    """The section's own of these (attribute, owner), and its methods that read any of them, or each other."""
    tree = ast.parse(dedent(inspect.getsource(section)))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    known, before = set(read), 0
    while len(known) > before:
        before = len(known)
        for function in functions:
            if known & set(attributes_of(function)):
                known.add((function.name, "self"))
    return {name for name, owner in known if owner == "self"}


def file_of(section: type[Section]) -> Path:
    return PACKAGE.parent / (section.__module__.replace(".", "/") + ".py")


class Planted(Section):
    unused: int = 1
    """Read by methods that nobody calls."""
    stages: int = 1
    """Read by a property that many read, as `actor.world_size`."""

    def unheard_of(self) -> int:
        return self._asked_by_it_alone() + 1

    def _asked_by_it_alone(self) -> int:
        return self.unused

    @property
    def world_size(self) -> int:
        return self.stages


def test_a_method_that_nobody_calls_is_no_reader() -> None:
    assert derived(Planted, {("unused", "self")}) == {"unused", "unheard_of", "_asked_by_it_alone"}
    assert is_acted_on("actor.stages", Planted)
    assert not is_acted_on("actor.unused", Planted)


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


def test_the_keys_of_every_choice_are_looked_at() -> None:
    found = {key for key, _ in OF_ALGORITHMS}
    assert {
        "algorithm.modulation.k_f",
        "algorithm.gain",
        "algorithm.overlong.penalty",
        "algorithm.kl.estimator",
    } <= found
    assert len(OTHERS) > 60
