"""The rooms of the package: a module imports from its own room and from those below, never up, never in a circle.

`docs/architecture.md` draws the same order. Every import counts: at the top, inside a function, for type checkers.
"""

import re
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.support.import_graph import Import, circle, imports_of, modules_of, packages_around

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "megatron_empg"

STOREYS = (
    ("common", "upstream"),
    (
        "run",
        "algorithms",
        "vocab_parallel",
        "weights.mapping",
        "weights.checkpoints",
        "weights.sync",
        "environments",
    ),
    ("rollout", "actor"),
    ("recipe",),
    ("trainer",),
    ("report", "planner", "cluster", "prepare"),
    ("launch",),
    ("evaluate",),
    ("study",),
    ("cli",),
)
"""From the ground up. A room may import itself and every room of a lower storey."""

NEXT_DOOR = {
    ("weights.checkpoints", "weights.mapping"): "a file's tensors are named and laid out by the mapping",
}
"""What may be imported on the same storey, and why."""

STOREY_OF = {room: number for number, storey in enumerate(STOREYS) for room in storey}


def room_of(module: str) -> str | None:
    """The room that a module lies in; "" for the package itself, None where it lies in no room."""
    _, *words = module.split(".")
    if not words:
        return ""
    for room in (".".join(words[:2]), words[0]):
        if room in STOREY_OF:
            return room
    # weights/ is three rooms, and the package around them is none but must hold nothing.
    return "" if words == ["weights"] else None


def broken(imports: Collection[Import]) -> list[str]:
    """A line for each import that leads up or next door; once, however many names it brings."""
    lines = map(fault, imports)
    return list(dict.fromkeys(line for line in lines if line is not None))


def fault(found: Import) -> str | None:
    here = room_of(found.importer)
    there = room_of(found.imported)
    if not here or not there or here == there or (here, there) in NEXT_DOOR:
        return None
    if STOREY_OF[there] < STOREY_OF[here]:
        return None
    return f"{here} → {there}: {found}"


def loads(imports: Collection[Import]) -> dict[str, set[str]]:
    """What loading a module loads, with the packages around it, its own excepted: those are loaded already."""
    graph: dict[str, set[str]] = {}
    for found in imports:
        if found.at_load:
            own = set(packages_around(found.importer))
            reached = {found.imported, *packages_around(found.imported)}
            graph.setdefault(found.importer, set()).update(reached - own - {found.importer})
    return graph


def between_rooms(imports: Collection[Import]) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for found in imports:
        here = room_of(found.importer)
        there = room_of(found.imported)
        if here and there and here != there:
            graph.setdefault(here, set()).add(there)
    return graph


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return imports_of(PACKAGE)


def test_no_room_imports_one_above_or_beside_it(imports: list[Import]) -> None:
    assert len(imports) > 500
    found = broken(imports)
    assert not found, "\n" + "\n".join(found)


def test_every_module_lies_in_a_room() -> None:
    assert [name for name in modules_of(PACKAGE) if room_of(name) is None] == []


def test_the_package_itself_and_the_three_rooms_of_weights_are_joined_by_nothing(imports: list[Import]) -> None:
    assert [str(found) for found in imports if room_of(found.importer) == ""] == []


def test_no_module_is_loaded_in_a_circle(imports: list[Import]) -> None:
    assert " → ".join(circle(loads(imports))) == ""


def test_no_rooms_form_a_circle(imports: list[Import]) -> None:
    assert " → ".join(circle(between_rooms(imports))) == ""


def test_every_exception_is_in_use(imports: list[Import]) -> None:
    used = {(room_of(found.importer), room_of(found.imported)) for found in imports}
    assert set(NEXT_DOOR) - used == set()


def test_the_page_of_the_architecture_draws_these_rooms() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (drawing,) = re.findall(r"^```rooms\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    storeys, _, next_door = drawing.partition("\n\n")
    assert [tuple(line.split()) for line in reversed(storeys.splitlines())] == list(STOREYS)
    assert next_door.splitlines() == [f"{here} → {there}" for here, there in NEXT_DOOR]
    told = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert told == {room.partition(".")[0] for room in STOREY_OF}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A package with one import up in a function, one for type checkers, and a circle at load time."""
    texts = {
        "__init__.py": "",
        "recipe/__init__.py": "from megatron_empg.recipe import values\n",
        "recipe/values.py": "import os\n\n\ndef late():\n    from megatron_empg.launch.play import ask\n",
        "launch/__init__.py": "",
        "launch/play.py": "def ask():\n    import megatron_empg.recipe.values\n",
        "actor/__init__.py": "",
        "actor/names.py": "if TYPE_CHECKING:\n    from megatron_empg.rollout import turn\n",
        "rollout/__init__.py": "from megatron_empg.rollout import turn\n",
        "rollout/turn.py": "from megatron_empg.rollout.token import one\n",
        "rollout/token.py": "try:\n    import megatron_empg.rollout.turn\nexcept ImportError:\n    pass\n",
        "hall.py": "",
    }
    package = tmp_path / "megatron_empg"
    for name, text in texts.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


def test_planted_faults_are_found_and_named(planted: Path) -> None:
    found = imports_of(planted)
    assert broken(found) == [
        "actor → rollout: megatron_empg/actor/names.py:2 imports megatron_empg.rollout.turn",
        "recipe → launch: megatron_empg/recipe/values.py:5 imports megatron_empg.launch.play",
    ]
    ring = circle(loads(found))
    assert set(ring) == {"megatron_empg.rollout.turn", "megatron_empg.rollout.token"}
    assert ring[0] == ring[-1]
    assert circle(between_rooms(found)) == ["launch", "recipe", "launch"]
    assert [name for name in modules_of(planted) if room_of(name) is None] == ["megatron_empg.hall"]
