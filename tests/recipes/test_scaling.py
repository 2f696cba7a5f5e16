"""The rule that makes a recipe small changes numbers only and rehearses every degree: over random recipes."""

import math
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from megatron_empg.recipe import Recipe, RecipeError, SftRecipe, load_recipe, parse_recipe
from tests.recipes.recipe_files import RECIPES, read
from tests.recipes.scaling import DEGREE_KEYS, DEGREES, Overrides, scaled, words

RANKS = 4
Keys = dict[str, Any]

booleans, degrees = st.booleans(), st.sampled_from([1, 1, 2, 3, 4, 8])
seconds = st.one_of(st.none(), st.integers(1, 300))


def sections(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A section of a recipe in which any key may be missing."""
    return st.fixed_dictionaries({}, optional=keys)


actors = sections(
    **{name: degrees for name in (*DEGREES, "virtual_pipeline")},
    expert_parallel=st.sampled_from([1, 1, 2, 4]),
    context_exchange=st.sampled_from([None, None, "p2p", "all_gather", "a2a"]),
    **{name: booleans for name in ("sequence_parallel", "distributed_optimizer", "overlap")},
    recompute=st.sampled_from(["none", "selective", "block", "full"]),
    recompute_layers=st.integers(1, 9),
    max_tokens_per_microbatch=st.integers(1, 40_000),
    optimizer=sections(
        lr=st.floats(1e-7, 1e-1), warmup_steps=st.integers(0, 90), schedule=st.sampled_from(["constant", "cosine"])
    ),
)
common = {
    "run": st.fixed_dictionaries(
        {"folder": st.just("runs/x"), "steps": st.integers(1, 4000)},
        optional={"seed": st.integers(0, 9), "checkpoint_every": st.integers(1, 500)},
    ),
    "model": st.fixed_dictionaries(
        {"path": st.just("some/model")},
        optional={
            "dtype": st.sampled_from(["float32", "bfloat16"]),
            "initialise": st.sampled_from(["checkpoint", "random"]),
        },
    ),
    "environment": st.fixed_dictionaries(
        {"name": st.just("deep_search")},
        optional={"max_turns": st.integers(1, 50), "settings": st.just({"searcher": "habit", "splits": {"x": 3}})},
    ),
    "actor": actors,
}
shared_by_algorithms = {
    "modulation": st.one_of(
        st.sampled_from(["none", "empg", "aem"]), st.just({"name": "empg", "k": 3.0, "normalize": "rank"})
    ),
    "regularizer": st.sampled_from(["none", "entropy", "epo"]),
    "correction": st.one_of(st.sampled_from(["none", "tis", "icepop"]), st.just({"name": "mis", "low": 0.0})),
    "kl": sections(coefficient=st.floats(0, 1)),
    "masks": sections(truncated=booleans, cut_turns=booleans),
    "updates_per_batch": st.integers(1, 8),
    "loss_mean": st.sampled_from(["token", "sequence"]),
    "kl_to_initial_every": st.integers(0, 9),
}
filtering = {"max_generation_rounds": st.integers(1, 12), "normalize_std": booleans}
overlong = st.fixed_dictionaries({"buffer": st.integers(1, 9000), "max_length": st.integers(1, 20_000)})
algorithms = st.one_of(
    sections(
        name=st.sampled_from(["grpo", "rloo", "reinforce_pp", "gspo", "gigpo", "igpo"]), **shared_by_algorithms
    ),
    st.fixed_dictionaries(
        {"name": st.just("dapo")},
        optional={**shared_by_algorithms, **filtering, "shuffle_rewards": booleans, "overlong": overlong},
    ),
    st.fixed_dictionaries({"name": st.just("sampo")}, optional={**shared_by_algorithms, **filtering}),
)
training = st.fixed_dictionaries({
    **common,
    "rollout": st.fixed_dictionaries(
        {"groups": st.integers(1, 64), "group_size": st.integers(2, 32)},
        optional={
            "max_turn_tokens": st.integers(1, 2000),
            "max_episode_tokens": st.integers(2, 40_000),
            "concurrency": st.integers(1, 512),
            "temperature": st.floats(0.1, 2.0),
        },
    ),
    "engines": sections(
        count=degrees, tensor_parallel=degrees, kv_cache_gib=st.one_of(st.none(), st.floats(0.01, 9.0))
    ),
    "algorithm": algorithms,
    "evaluation": sections(every=st.integers(0, 50), questions=st.integers(0, 500), greedy=booleans),
    "limits": sections(
        logprob_gap=st.floats(1e-4, 1.0), min_groups=st.integers(1, 8), max_error_share=st.floats(0, 0.9),
        max_idle_steps=st.integers(0, 9), rollout_timeout=st.integers(1000, 4000), turn_timeout=seconds,
    ),
})  # fmt: skip
warm_ups = st.fixed_dictionaries({
    **common,
    "sft": st.fixed_dictionaries(
        {"batch_size": st.integers(1, 64)}, optional={"validate_every": st.integers(0, 9)}
    ),
})  # fmt: skip


def possible(raw: dict[str, Any], kind: Any) -> Any:
    """The recipe; the example is dropped where there can be none such."""
    try:
        return parse_recipe(raw, kind)
    except RecipeError:
        assume(False)


def flat(section: dict[str, Any], prefix: str = "") -> Keys:
    """A recipe's values by dotted key; an environment's settings are one value."""
    found: Keys = {}
    for name, value in section.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key != "environment.settings":
            found |= flat(value, f"{key}.")
        else:
            found[key] = value
    return found


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_passes(recipe: Any, passes: list[Overrides], apply: Any) -> None:
    before = flat(recipe.model_dump(mode="json"))
    reached = dict.fromkeys(DEGREE_KEYS, 1)
    assert passes
    for overrides in passes:
        small = apply(overrides)
        after = flat(small.model_dump(mode="json"))
        assert after.keys() == before.keys()
        changed = [key for key in after if after[key] != before[key]]
        for key in changed:
            was = before[key]
            unset_size = key == "engines.kv_cache_gib" and was is None
            assert is_number(after[key]), f"{key} became {after[key]!r}"
            assert is_number(was) or unset_size, f"{key} was {was!r}"
            assert not was or after[key] > 0, f"{key} was {was} and is switched off"
            assert unset_size or after[key] <= was or key == "rollout.group_size", f"{key} grew from {was}"
            assert not key.startswith(("limits.", "environment.")), f"{key} is the recipe's own"
            assert key != "actor.optimizer.lr"
        for key in DEGREE_KEYS:
            assert after.get(key, 1) <= 2
            reached[key] = max(reached[key], after.get(key, 1))
        bound = 2 ** (recipe.actor.sequence_parallel + (recipe.actor.context_exchange is not None))
        assert small.actor.world_size <= max(RANKS, 2 * bound)
    for key in DEGREE_KEYS:
        assert (reached[key] > 1) == (before.get(key, 1) > 1), f"{key} is {before.get(key)} and was not rehearsed"


def with_overrides(recipe: Any, overrides: Overrides) -> Any:
    raw = recipe.model_dump(mode="json")
    for key, value in overrides.items():
        *path, last = key.split(".")
        node = raw
        for name in path:
            node = node[name]
        assert last in node, key
        node[last] = value
    return parse_recipe(raw, type(recipe))


def episode_of_many_ranks(tokens: int) -> dict[str, Any]:
    """A recipe whose microbatch holds an episode only since eight context ranks share it."""
    return {
        "run": {"folder": "runs/x", "steps": 1},
        "model": {"path": "some/model"},
        "environment": {"name": "deep_search"},
        "actor": {"max_tokens_per_microbatch": 18, "context_parallel": 8},
        "rollout": {"groups": 1, "group_size": 2, "max_turn_tokens": 1, "max_episode_tokens": tokens},
    }


@settings(max_examples=300, deadline=None)
@example(episode_of_many_ranks(65))
@example(episode_of_many_ranks(131))
@given(training)
def test_a_training_recipe_keeps_all_but_its_numbers(raw: dict[str, Any]) -> None:
    recipe: Recipe = possible(raw, Recipe)
    check_passes(recipe, scaled(recipe, RANKS), lambda overrides: with_overrides(recipe, overrides))


@settings(max_examples=100, deadline=None)
@given(warm_ups)
def test_a_warm_up_keeps_all_but_its_numbers(raw: dict[str, Any]) -> None:
    recipe: SftRecipe = possible(raw, SftRecipe)
    check_passes(recipe, scaled(recipe, RANKS), lambda overrides: with_overrides(recipe, overrides))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_shipped_recipes_scale_by_the_same_rule(path: Any) -> None:
    recipe = read(path)
    passes = scaled(recipe, RANKS)
    check_passes(recipe, passes, lambda overrides: load_recipe(path, words(overrides), type(recipe)))
    episodes = [o["rollout.groups"] * o["rollout.group_size"] for o in passes if "rollout.groups" in o]
    assert all(count <= 32 for count in episodes)


def test_a_recipe_with_many_degrees_takes_several_passes() -> None:
    raw = {
        "run": {"folder": "runs/x", "steps": 3},
        "model": {"path": "some/model"},
        "environment": {"name": "deep_search"},
        "rollout": {"groups": 64, "group_size": 8},
        "actor": {
            "tensor_parallel": 8, "sequence_parallel": True, "pipeline_parallel": 4, "virtual_pipeline": 2,
            "context_parallel": 4, "data_parallel": 16,
        },
    }  # fmt: skip
    passes = scaled(parse_recipe(raw), RANKS)
    with_ranks = [{name: o[f"actor.{name}"] for name in DEGREES if o[f"actor.{name}"] > 1} for o in passes]
    assert with_ranks == [
        {"tensor_parallel": 2, other: 2} for other in ("pipeline_parallel", "context_parallel", "data_parallel")
    ]
    assert [o["actor.virtual_pipeline"] for o in passes] == [2, 1, 1]
    assert all(math.prod(ranks.values()) == RANKS for ranks in with_ranks)
