"""Recipes of worlds of text commands, run small on their real engines, in their own windowed prompts.

`make test-environments` runs these beside the tests of the engines, which must be there: all recipes for two
cores, and of those for clusters as few as have, with them, every world and every choice of dtype, actor and
algorithm. `make test-environments-all` runs all of them the whole way: killed, resumed, exported, evaluated.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from launches import Launches
from recipe_files import ACTS, ROOT, WORLDS, environment_of, read
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
LONGER = {"scienceworld_miniature": 8}
"""Turns of those whose policy earns nothing in four, nor loses anything: there would be nothing to learn from."""
ENVIRONMENT_MEMORY = 1.6
"""GiB of all worker processes: two or three, whose engines take seconds to start."""
ON_CLUSTERS = [path for path in ACTS if known_model(read(path).model.path) is not None]


def small(path: Path) -> Overrides:
    """What makes a recipe small. One engine: what there is between two is rehearsed by recipes of Deep Search."""
    recipe = read(path)
    (numbers,) = scaled(recipe, RANKS, SIZE)
    numbers["environment.max_turns"] = min(recipe.environment.max_turns, LONGER.get(path.stem, MOST_TURNS))
    if isinstance(recipe, Recipe):
        numbers["limits.environment_memory"] = ENVIRONMENT_MEMORY
        if not ALL_THE_WAY:
            numbers["engines.count"] = 1
    return numbers


def parts_of(path: Path) -> set[str]:
    """A recipe's world, and what it chooses of policy, actor and algorithm, made small."""
    recipe = load_recipe(path, words(small(path)))
    said = recipe.model_dump(
        mode="json",
        include={"model": {"dtype"}, "actor": True, "algorithm": True},
        exclude={"actor": {"max_tokens_per_microbatch"}},
    )
    return {recipe.environment.name, *leaves(said)}


def leaves(said: dict[str, Any], above: str = "") -> Iterator[str]:
    """``section.key=value`` of all that sections hold."""
    for key, value in said.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}={value}"


def few_with_all(paths: Sequence[Path], there: set[str]) -> list[Path]:
    """As few as have all parts beside those that are `there`: each time the one with most that are missing."""
    parts = {path: parts_of(path) for path in paths}
    missing = set().union(*parts.values()) - there
    chosen = []
    while missing:
        chosen.append(max(parts, key=lambda path: len(parts[path] & missing)))
        missing -= parts[chosen[-1]]
    return chosen


ON_TWO_CORES = [path for path in ACTS if path not in ON_CLUSTERS]
TRAINED_THERE = [path for path in ON_TWO_CORES if isinstance(read(path), Recipe)]
SEEN_THERE = set().union(*map(parts_of, TRAINED_THERE))
CHOSEN = ACTS if ALL_THE_WAY else [*ON_TWO_CORES, *few_with_all(ON_CLUSTERS, SEEN_THERE)]


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
    assert {environment_of(path) for path in ON_CLUSTERS} == set(WORLDS)


def test_those_that_are_run_have_every_world_and_every_choice_of_all() -> None:
    run = set().union(*(parts_of(path) for path in CHOSEN if isinstance(read(path), Recipe)))
    assert all(parts_of(path) <= run for path in ON_CLUSTERS)
    assert {environment_of(path) for path in CHOSEN} == set(WORLDS)
