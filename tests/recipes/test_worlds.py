"""Recipes of worlds of text commands, run small on their real engines, in their own windowed prompts.

`make test-environments` runs some of these beside the tests of the engines, which must be there. Of the recipes
for clusters, whose prompts are the papers', it takes as few as have every world and every choice of dtype, actor
and algorithm. It takes every warm-up, and of the small policies' training what brings a choice that others lack.
`make test-environments-all` runs all of them the whole way: killed, resumed, exported, evaluated.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from small_policy import TAG, Shape, played, write_tokenizer
from transformers import AutoConfig, AutoTokenizer

from megatron_empg.environments.base import Message
from megatron_empg.environments.registry import make_task_source
from megatron_empg.environments.scienceworld.errors import EngineUnavailable
from megatron_empg.environments.scienceworld.java_installation import installed
from megatron_empg.recipe import Recipe, load_recipe
from megatron_empg.weights.mapping.known_models import known_model
from tests.environments.alfworld_engine import generate, python_with_engine
from tests.environments.needed import needs
from tests.recipes.launches import Launches
from tests.recipes.recipe_files import ACTS, ROOT, WORLDS, environment_of, read
from tests.recipes.rehearsal import ALL_THE_WAY, RANKS, WHOLE_STEPS, rehearse
from tests.recipes.scaling import Overrides, Size, scaled, words
from tests.recipes.stand_ins import start_of

STEPS = WHOLE_STEPS if ALL_THE_WAY else 2
SIZE = Size(steps=STEPS, groups=2, group_size=4, episode_tokens=2048, turn_tokens=24, questions=1)
MOST_TURNS = 4
LONGER = {"alfworld_miniature": 12, "scienceworld_miniature": 12}
"""Turns of those whose policy earns nothing in four, nor loses anything: there would be nothing to learn from."""
TRAINED_BY_HAND = ("alfworld_miniature", "scienceworld_miniature")
"""Recipes that tests/environments/test_worlds_reference.py trains on their engines, in the same `make` target."""
SHOWN = 6
"""Walkthroughs whose words a tokenizer is held to."""
SAME_WORDS = {"alfworld": 1.04, "scienceworld": 1.04, "sokoban": 1.04, "webshop": 1.11}
"""How many times the tokens of a tokenizer that was trained on these very walkthroughs one may need that knows the
world's words. Measured: 1.012, 1.011, 1 and 1.084; with other words for "You have taken 3 turns so far." 1.077,
1.076, 1.26 and 1.141."""
ONE_TOKEN = {"webshop": re.compile(r"B0[0-9A-Z]{8}|\[SEP\]")}
"""What is a token of its own, as docs/ say where they make the tokenizer."""
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
        exclude={"actor": {"max_tokens_per_microbatch": True, "optimizer": {"lr"}}},
    )
    return {recipe.environment.name, *leaves(said)}


def leaves(said: dict[str, Any], above: str = "") -> Iterator[str]:
    """``section.key=value`` of all that sections hold."""
    for key, value in said.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}={value}"


def few_with_all(parts: Mapping[Path, set[str]], there: Iterable[str] = ()) -> list[Path]:
    """As few as have all parts beside those that are `there`: each time the one with most that are missing."""
    missing = set().union(*parts.values()) - set(there)
    chosen: list[Path] = []
    while missing:
        chosen.append(max(parts, key=lambda path: len(parts[path] & missing)))
        missing -= parts[chosen[-1]]
    return chosen


def few() -> list[Path]:
    """What is run where not all are."""
    there = [path for path in ACTS if path not in ON_CLUSTERS]
    warm_ups = [path for path in there if not isinstance(read(path), Recipe)]
    trained = [path for path in there if path not in warm_ups and path.stem not in TRAINED_BY_HAND]
    of_clusters = {path: parts_of(path) for path in ON_CLUSTERS}
    of_trained = {path: parts_of(path) for path in trained}
    chosen = few_with_all(of_clusters)
    return [*chosen, *few_with_all(of_trained, set().union(*of_clusters.values())), *warm_ups]


CHOSEN = ACTS if ALL_THE_WAY else few()


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


def engine_of(world: str) -> str | None:
    """What the command line of a world's engine holds; None where the world has no process of its own."""
    if world == "alfworld":
        return str(python_with_engine())
    if world == "scienceworld":
        return "py4j.GatewayServer"
    return None


def check_engines_were_killed(world: str, launches: Launches) -> None:
    """The kill met the world's engine at work, which `Launches` has seen ended since."""
    engine = engine_of(world)
    if engine is not None:
        assert any(engine in line for line in launches.killed), launches.killed


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


def read_of(sequences: Iterable[Iterable[Message]]) -> list[str]:
    """The texts of all messages."""
    return [message["content"] for messages in sequences for message in messages]


def tokens_of(folder: Path, texts: Iterable[str]) -> int:
    """How many a tokenizer needs for all of them."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    return sum(len(tokenizer.encode(text)) for text in texts)


@pytest.mark.parametrize("world", WORLDS)
def test_a_small_policys_tokenizer_knows_what_its_world_says(
    world: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = ROOT / f"recipes/{world}_miniature.yaml"
    recipe = load_recipe(path, words(data_of(path, request)))
    assert isinstance(recipe, Recipe)
    folder = ROOT / recipe.model.path
    environment = recipe.environment
    source = make_task_source(world, max_turns=environment.max_turns, **environment.settings)
    sequences = list(played(source, SHOWN))
    asyncio.run(source.close())
    size = AutoConfig.from_pretrained(str(folder)).vocab_size
    write_tokenizer(tmp_path, sequences, Shape(vocabulary=size), ONE_TOKEN.get(world))
    texts = read_of(sequences)
    assert tokens_of(folder, texts) <= SAME_WORDS[world] * tokens_of(tmp_path, texts)
    check_lengths(recipe, sequences)
    start = read(path.with_stem(f"{path.stem}_sft")).model.path
    assert (folder / "tokenizer.json").read_bytes() == (ROOT / start / "tokenizer.json").read_bytes()


def check_lengths(recipe: Recipe, sequences: Iterable[Iterable[Message]]) -> None:
    """What is read and written fits the recipe's limits, and a turn's tags are a token each."""
    tokenizer = AutoTokenizer.from_pretrained(str(ROOT / recipe.model.path))
    for messages in sequences:
        said = [{"role": message["role"], "content": message["content"]} for message in messages]
        whole = tokenizer.apply_chat_template(said, return_dict=False)
        assert len(whole) <= recipe.rollout.max_episode_tokens
        if said[-1]["role"] == "assistant":
            turn = said[-1]["content"]
            assert len(tokenizer.encode(turn)) < recipe.rollout.max_turn_tokens, "a turn ends with a token"
            assert all(len(tokenizer.encode(tag)) == 1 for tag in TAG.findall(turn))


def test_a_products_number_is_one_token_for_most_of_the_catalogue() -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(ROOT / "recipes/webshop_miniature/policy"))
    environment = read(ROOT / "recipes/webshop_miniature.yaml").environment
    source = make_task_source("webshop", max_turns=environment.max_turns, **environment.settings)
    found = set(ONE_TOKEN["webshop"].findall("\n".join(read_of(played(source, 60)))))
    assert len(found) > 60
    alone = [text for text in found if len(tokenizer.encode(text)) == 1]
    assert len(alone) > 0.9 * len(found), "those of the walkthroughs that it was trained on"


def test_of_each_world_a_recipe_for_clusters_is_run_and_every_warm_up() -> None:
    assert {environment_of(path) for path in CHOSEN if path in ON_CLUSTERS} == set(WORLDS)
    assert {environment_of(path) for path in CHOSEN if not isinstance(read(path), Recipe)} == set(WORLDS)


def test_both_algorithms_and_dtypes_are_among_those_that_are_run() -> None:
    run = [recipe for recipe in map(read, CHOSEN) if isinstance(recipe, Recipe)]
    assert {recipe.algorithm.name for recipe in run} == {"dapo", "grpo"}
    assert {recipe.model.dtype for recipe in run} == {"bfloat16", "float32"}


def test_a_recipe_that_is_left_out_is_trained_elsewhere_or_has_a_like_one() -> None:
    like = set().union(*(parts_of(path) for path in CHOSEN if isinstance(read(path), Recipe)))
    elsewhere = (ROOT / "tests/environments/test_worlds_reference.py").read_text(encoding="utf-8")
    for path in ACTS:
        by_hand = path.stem in TRAINED_BY_HAND and f'run("{path.stem}"' in elsewhere
        assert path in CHOSEN or by_hand or parts_of(path) <= like, path.stem


@pytest.mark.parametrize(
    ("parts", "there", "chosen"),
    [
        ({"one": "ab", "two": "bc", "most": "abc"}, "", ["most"]),
        ({"one": "ab", "two": "bcd", "three": "a"}, "", ["two", "one"]),
        ({"one": "ab", "two": "bcd"}, "cd", ["one"]),
        ({"one": "ab"}, "abc", []),
        ({}, "", []),
    ],
)
def test_few_are_chosen_that_have_all_parts(parts: dict[str, str], there: str, chosen: list[str]) -> None:
    sets = {Path(name): set(letters) for name, letters in parts.items()}
    assert few_with_all(sets, there) == [Path(name) for name in chosen]
