"""One recipe seen through on real ranks and engines: its steps and its export, and where it goes the whole way a
kill, a resume and an evaluation too."""

import os
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from megatron_empg.recipe import Recipe, SftRecipe, load_recipe
from megatron_empg.weights.mapping.initialise import random_tensors
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameters import parameter_table
from tests.recipes.launches import KILLED, Launches
from tests.recipes.recipe_files import read
from tests.recipes.scaling import Overrides, words

RANKS = 4
WHOLE_STEPS = 3
KILLED_AFTER_STEP = 2
ALL_THE_WAY = bool(os.environ.get("RECIPES_ALL"))
"""Take every recipe the whole way."""


def rehearse(path: Path, overrides: Overrides, *, whole: bool) -> Launches:
    """Run a recipe with these overrides, its start and its run folder among them; the starts that it took."""
    kind = type(read(path))
    recipe = load_recipe(path, words(overrides), kind)
    command = ["sft" if kind is SftRecipe else "train", str(path), *words(overrides)]
    launches = Launches(recipe.run.folder)
    if whole:
        launches.run(*command, kill_after_step=KILLED_AFTER_STEP)
        assert launches.exits == [KILLED], launches.output
    launches.run(*command)
    assert launches.exits[-1] == 0, launches.output
    print(f"{path.stem}: {launches.processor_seconds:.0f} processor seconds")

    check_steps(recipe, launches.logged)
    policy = recipe.run.folder / "policy"
    check_export(recipe, policy, recipe.model.path)
    if whole and isinstance(recipe, Recipe):
        one_engine = words({**overrides, "engines.count": 1})
        launches.run("evaluate", str(path), *one_engine, "--model", str(policy))
        assert launches.exits[-1] == 0, launches.output
        asked = [line for line in launches.output.splitlines() if f"of {recipe.evaluation.questions} " in line]
        assert len(asked) == len(recipe.evaluation.splits) * (1 + recipe.evaluation.greedy), launches.output
    return launches


def check_steps(recipe: Recipe | SftRecipe, logged: list[dict[str, Any]]) -> None:
    """Every step once, each an update that was made; in training within the recipe's own limits."""
    # A warm-up says something of step 0 only where it measures held-out walkthroughs.
    first = 1 if isinstance(recipe, SftRecipe) and not recipe.sft.validate_every else 0
    assert [line["step"] for line in logged] == list(range(first, recipe.run.steps + 1)), "every step once"
    steps = logged[1 - first :]
    assert all(line.get("skipped_updates", 0) == 0 for line in steps)
    if isinstance(recipe, SftRecipe):
        assert all(line["policy/grad_norm"] > 0 for line in steps)
        return
    trained = [line for line in steps if not line["train/idle"]]
    assert trained, "nothing to learn from in any step"
    for line in trained:
        assert line["train/groups_kept"] >= 1, line["step"]
        assert line["policy/grad_norm"] > 0, line["step"]
        check_agreement(recipe, line)
    for line in steps:
        assert line["train/episodes_error"] == 0, line["step"]
        assert line["policy_version"] == line["step"] - 1
    decodings = ("sampled", "greedy") if recipe.evaluation.greedy else ("sampled",)
    asked = recipe.evaluation.questions
    for line in (logged[0], logged[-1]) if asked else ():
        for split, how in product(recipe.evaluation.splits, decodings):
            assert line[f"eval/{split}/{how}_questions"] == asked
            assert line[f"eval/{split}/{how}_errors"] == 0


def check_agreement(recipe: Recipe, line: dict[str, Any]) -> None:
    """Engine and actor agree on the tokens of the newest policy, which a batch of older tokens alone has none of;
    older ones differ by what updates change, and none is older than the recipe allows."""
    if recipe.rollout.max_lag:
        assert line["stream/lag_max"] <= recipe.rollout.max_lag, line["step"]
        if "policy/logprob_gap_mean" not in line:
            assert line["stream/lag_share_0"] == 0, line["step"]
            assert 0 < line["policy/logprob_gap_lag_1"] <= 1, line["step"]
            return
    assert 0 < line["policy/logprob_gap_mean"] <= recipe.logprob_gap_limit, line["step"]


def check_export(recipe: Recipe | SftRecipe, policy: Path, start: Path) -> None:
    """The exported policy has the start's tensors, in the recipe's dtype, and training has changed them."""
    after = load_file(policy / "model.safetensors")
    before = load_file(start / "model.safetensors") if recipe.model.initialise == "checkpoint" else drawn(recipe)
    assert after.keys() == before.keys()
    dtype = getattr(torch, recipe.model.dtype)
    assert {tensor.dtype for tensor in after.values()} == {dtype}
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    same = [name for name, tensor in after.items() if torch.equal(tensor, before[name].to(dtype))]
    assert len(same) < len(after), "training has changed no weight"


def drawn(recipe: Recipe | SftRecipe) -> dict[str, torch.Tensor]:
    """The weights of a random start."""
    config = ModelConfig.from_folder(recipe.model.path)
    found = {}
    for parameter in parameter_table(config):
        found |= dict(zip(parameter.hf, random_tensors(parameter, config, recipe.run.seed), strict=True))
    return found
