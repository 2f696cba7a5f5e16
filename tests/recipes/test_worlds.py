"""Recipes of worlds of text commands, run small on their real engines, in their own windowed prompts.

`make test-environments` runs these beside the tests of the engines, which must be there: all recipes for two
cores, and of those for clusters as few as have every world and every layout among them. `make
test-environments-all` runs all of them the whole way: killed, resumed, exported, evaluated.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launches import Launches
from recipe_files import ACTS, ROOT, environment_of, read
from rehearsal import ALL_THE_WAY, RANKS, WHOLE_STEPS, rehearse
from scaling import Overrides, Size, scaled, words
from stand_ins import start_of

sys.path.insert(0, str(ROOT / "tests/environments"))

from alfworld_engine import generate, python_with_engine
from needed import needs

from megatron_empg.environments.scienceworld.errors import EngineUnavailable
from megatron_empg.environments.scienceworld.installed import installed
from megatron_empg.recipe import Recipe, load_recipe
from megatron_empg.weights.mapping.known_models import known_model

STEPS = WHOLE_STEPS if ALL_THE_WAY else 2
SIZE = Size(steps=STEPS, groups=2, group_size=4, episode_tokens=2048, turn_tokens=24, questions=1)
MOST_TURNS = 4
ON_CLUSTERS = [path for path in ACTS if known_model(read(path).model.path) is not None]


def small(path: Path) -> Overrides:
    """What makes a recipe small. One engine: what there is between two is rehearsed by recipes of Deep Search."""
    recipe = read(path)
    (numbers,) = scaled(recipe, RANKS, SIZE)
    numbers["environment.max_turns"] = min(recipe.environment.max_turns, MOST_TURNS)
    if isinstance(recipe, Recipe):
        numbers["limits.environment_memory"] = 3
        if not ALL_THE_WAY:
            numbers["engines.count"] = 1
    return numbers


def layout_of(path: Path) -> dict[str, Any]:
    """A recipe's actor and algorithm, made small, without how many tokens there are."""
    recipe = load_recipe(path, words(small(path)))
    return recipe.model_dump(
        include={"actor": True, "algorithm": True}, exclude={"actor": {"max_tokens_per_microbatch"}}
    )


def of_every_world_and_layout() -> Iterator[Path]:
    """Of the recipes for clusters, each time the one with most that none before it has: a world, a layout."""
    parts = {path: {environment_of(path), str(layout_of(path))} for path in ON_CLUSTERS}
    left = set().union(*parts.values())
    while left:
        best = max(parts, key=lambda path: len(parts[path] & left))
        left -= parts[best]
        yield best


CHOSEN = (
    ACTS
    if ALL_THE_WAY
    else [*sorted(of_every_world_and_layout()), *(path for path in ACTS if path not in ON_CLUSTERS)]
)


@pytest.fixture(scope="session")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ALFWorld games that were generated here, of the kind and rooms of the recipe for two cores."""
    python_with_engine()
    made = tmp_path_factory.mktemp("alfworld") / "games"
    generate(made, train=2, test_id=1, test_ood=1, kinds="pick_and_place_simple", rooms="bathroom")
    return made


def require_scienceworld() -> None:
    """Skip, or fail, where its engine is not here."""
    try:
        installed()
    except EngineUnavailable as error:
        needs(False, "ScienceWorld's engine", str(error))


def data_of(path: Path, request: pytest.FixtureRequest) -> Overrides:
    """What names the data that a recipe's environment needs."""
    world = environment_of(path)
    if world == "scienceworld":
        require_scienceworld()
    return {"environment.settings.data": request.getfixturevalue("games")} if world == "alfworld" else {}


def check_turns(recipe: Recipe, launches: Launches) -> None:
    assert recipe.most_sequences == recipe.environment.max_turns, "each turn is a sequence of its own"
    for line in launches.logged[1:]:
        turns = line["train/turns"] * line["train/episodes"]
        assert line["train/malformed_actions"] < turns, "no turn could be read"


def check_engines_were_killed(world: str, launches: Launches) -> None:
    """The kill met the world's engine at work, which `Launches` has seen ended since."""
    engines = {"alfworld": lambda: str(python_with_engine()), "scienceworld": lambda: "py4j.GatewayServer"}
    if world in engines:
        program = engines[world]()
        assert any(program in line for line in launches.killed), launches.killed


@pytest.mark.parametrize("path", CHOSEN, ids=lambda path: path.stem)
def test_a_recipe_of_a_world_runs_from_its_own_kind_of_start(
    path: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    written = read(path)
    ours = {"model.path": start_of(written), "run.folder": tmp_path / "run"}
    overrides = {**small(path), **data_of(path, request), **ours}
    launches = rehearse(path, overrides, whole=ALL_THE_WAY)
    if isinstance(written, Recipe):
        check_turns(load_recipe(path, words(overrides)), launches)
        if ALL_THE_WAY:
            check_engines_were_killed(environment_of(path), launches)


def test_each_world_has_a_recipe_for_a_cluster() -> None:
    assert {environment_of(path) for path in ON_CLUSTERS} == {"alfworld", "scienceworld", "sokoban", "webshop"}


def test_those_that_are_run_have_every_world_and_layout() -> None:
    assert {environment_of(path) for path in CHOSEN} == {environment_of(path) for path in ACTS}
    layouts = [layout_of(path) for path in CHOSEN if path in ON_CLUSTERS]
    assert all(layout_of(path) in layouts for path in ON_CLUSTERS)
