"""`empg plan`: the shipped recipes fit their nodes, what does not fit says why, and the launcher agrees."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from megatron_empg.cli import app
from megatron_empg.common.gpus import GPUS, PEAK_TFLOPS
from megatron_empg.planner.search import GIB, KEYS, LayoutCandidate, LayoutPlan, changed_keys, plan
from megatron_empg.recipe import Recipe, RecipeError, load_recipe
from megatron_empg.recipe.check import check_model
from megatron_empg.weights.mapping.model_config import ModelConfig

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "tests/unit/weights/configs"
SHIPPED = {"deepsearch_7b": ("qwen2.5-7b", 16), "deepsearch_32b": ("qwen2.5-32b", 64)}
TRAINER_NODES = {"deepsearch_7b": 1, "deepsearch_32b": 3}
"""As slurm/NAME.sh has them."""


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """A model's folder by name: its config.json alone."""

    def folder(name: str) -> Path:
        made = tmp_path / name
        made.mkdir(exist_ok=True)
        shutil.copy(CONFIGS / f"{name}.json", made / "config.json")
        return made

    return folder


def planned(
    name: str, folder: Path, *overrides: str, gib: float = 79, **choices: Any
) -> tuple[Recipe, LayoutPlan]:
    recipe = load_recipe(ROOT / f"recipes/{name}.yaml", [f"model.path={folder}", *overrides])
    settings = {"gpus": SHIPPED[name][1], "gpu_memory": gib * GIB, "gpu": GPUS["H100"], **choices}
    return recipe, plan(recipe, ModelConfig.from_folder(folder), **settings)


def command(name: str, folder: Path, *arguments: str) -> Any:
    gpus = str(SHIPPED[name][1])
    path = str(ROOT / f"recipes/{name}.yaml")
    return CliRunner().invoke(app, ["plan", path, f"model.path={folder}", "--gpus", gpus, *arguments])


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_fits_its_nodes(name: str, model: Any) -> None:
    result = command(name, model(SHIPPED[name][0]), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["trainer_gpus"] == 8 * TRAINER_NODES[name]
    script = (ROOT / f"slurm/{name}.sh").read_text(encoding="utf-8")
    assert f"EMPG_TRAINER_NODES=${{EMPG_TRAINER_NODES:-{TRAINER_NODES[name]}}}" in script
    assert found["recipe"]["fits"]
    assert max(stage["weights"] for stage in found["recipe"]["memory_gib"]) > 1
    assert found["engine"]["longest_episodes"] >= 8
    assert found["gpu_memory_gib"] == 79, "what CUDA offers of 80"
    assert 50 < found["host_memory_gib"] < 150


@pytest.mark.parametrize("name", SHIPPED)
def test_every_layout_listed_can_be_launched_and_the_rest_are_refused(name: str, model: Any) -> None:
    recipe, found = planned(name, model(SHIPPED[name][0]))
    assert len(found.fitting) > 10
    assert [c.seconds for c in found.fitting] == sorted(c.seconds for c in found.fitting)
    for candidate in (*found.fitting, *(c for c in found.others if c.stages)):
        assert candidate.actor.world_size == found.trainer_gpus
        assert (candidate.peak <= 79 * GIB) == candidate.fits
        check_model(with_layout(recipe, candidate))
    illegal = [c for c in found.others if not c.stages]
    assert illegal
    for candidate in illegal:
        with pytest.raises(RecipeError) as refused:
            check_model(with_layout(recipe, candidate))
        assert candidate.faults[0] in str(refused.value)


def with_layout(recipe: Recipe, candidate: LayoutCandidate) -> Recipe:
    """The recipe with the candidate's layout, as a user would write it."""
    raw = recipe.model_dump(mode="json")
    return Recipe.model_validate(raw | {"actor": raw["actor"] | candidate.actor.model_dump(mode="json")})


def test_a_layout_gets_no_more_recomputation_than_it_needs(model: Any) -> None:
    """One layer fewer in the block, and it would not fit."""
    recipe, found = planned("deepsearch_32b", model("qwen2.5-32b"))
    blocks = [c for c in found.fitting if c.actor.recompute == "block" and c.actor.recompute_layers > 1]
    assert blocks
    for candidate in blocks[:3]:
        fewer = candidate.actor.recompute_layers - 1
        lean = with_layout(recipe, candidate).model_dump()
        lean["actor"]["recompute_layers"] = fewer
        _, again = planned_recipe(Recipe.model_validate(lean), found)
        assert again.own_faults


def planned_recipe(recipe: Recipe, like: LayoutPlan) -> tuple[Recipe, LayoutPlan]:
    config = ModelConfig.from_folder(recipe.model.path)
    return recipe, plan(recipe, config, gpus=like.gpus, gpu_memory=like.gpu_memory, gpu=like.gpu)


def test_the_nearest_fix_fits(model: Any) -> None:
    keys = ("actor.tensor_parallel=4", "actor.recompute=none", "actor.context_parallel=1", "actor.data_parallel=8")
    tight = (*keys, "actor.max_tokens_per_microbatch=32768")
    recipe, found = planned("deepsearch_32b", model("qwen2.5-32b"), *tight)
    assert "GiB over on every rank" in found.own_faults[0]
    assert "activations" in found.own_faults[0]
    assert 0 < len(found.nearest) <= len(KEYS)
    fixed = load_recipe(
        ROOT / "recipes/deepsearch_32b.yaml",
        [f"model.path={recipe.model.path}", *tight, *(f"{k}={json.dumps(v)}" for k, v in found.nearest.items())],
    )
    assert not planned_recipe(fixed, found)[1].own_faults
    assert all(len(changed_keys(recipe.actor, c.actor)) >= len(found.nearest) for c in found.fitting)


def test_a_recipe_that_does_not_fit_ends_with_an_error_and_the_fix(model: Any) -> None:
    result = command("deepsearch_32b", model("qwen2.5-32b"), "--gpu-memory", "60")
    assert result.exit_code == 1
    assert "The recipe does not fit:" in result.output
    assert "Nearest fix: actor." in result.output


def test_main_memory_for_a_checkpoint_is_shown(model: Any) -> None:
    result = command("deepsearch_32b", model("qwen2.5-32b"))
    assert "Main memory of a trainer node while a checkpoint is saved: 142 GiB." in result.output


def test_engines_that_do_not_fit_are_named(model: Any) -> None:
    _, found = planned(
        "deepsearch_32b", model("qwen2.5-32b"), "engines.tensor_parallel=1", "engines.count=32", gib=78
    )
    assert any("the key-value cache holds 0.8" in fault for fault in found.own_faults)
    _, found = planned("deepsearch_32b", model("qwen2.5-32b"), "engines.tensor_parallel=1", gib=60, gpus=40)
    assert any(fault.startswith("engine GPU: ") and "GiB over" in fault for fault in found.own_faults)


def test_the_split_between_trainer_and_engines(model: Any) -> None:
    folder = model("qwen2.5-32b")
    _, found = planned("deepsearch_32b", folder, trainer_gpus=48)
    assert {c.actor.world_size for c in found.fitting} == {48}
    assert found.own_faults == ()
    _, found = planned("deepsearch_32b", folder, gpus=56)
    assert found.trainer_gpus == 16
    assert any("the recipe's actor takes 24 GPUs" in fault for fault in found.own_faults)
    with pytest.raises(RecipeError, match="--gpus is 40, but the engines alone take 40"):
        planned("deepsearch_32b", folder, gpus=40)
    with pytest.raises(RecipeError, match="--trainer-gpus is 64; of 64 GPUs it may be 1 to 60"):
        planned("deepsearch_32b", folder, trainer_gpus=64)


def test_what_cannot_be_read_is_named(tmp_path: Path, model: Any) -> None:
    result = command("deepsearch_7b", tmp_path)
    assert isinstance(result.exception, RecipeError)
    assert "model.path: cannot read" in str(result.exception)
    result = command("deepsearch_7b", model("qwen2.5-7b"), "--gpu", "T4")
    assert isinstance(result.exception, RecipeError)
    assert "--gpu is T4; allowed: A100, H100" in str(result.exception)


def test_experts_are_laid_out_by_expert_parallelism(model: Any) -> None:
    _, found = planned("deepsearch_32b", model("qwen3-30b-a3b"))
    best = found.fitting[0].actor
    assert best.expert_parallel > 1
    assert all(
        c.actor.expert_parallel <= 32 and c.actor.sequence_parallel == (c.actor.tensor_parallel > 1)
        for c in found.fitting
    )


def test_the_peaks_are_the_actors() -> None:
    assert {(name,): gpu.tflops for name, gpu in GPUS.items()}.items() <= PEAK_TFLOPS.items()


@pytest.mark.parametrize(
    ("name", "override", "named"),
    [
        ("qwen2.5-7b", "actor.expert_parallel=2", "the model has no experts"),
        ("qwen3-30b-a3b", "actor.sequence_parallel=false", "actor.sequence_parallel is false"),
        ("qwen2.5-7b", "engines.tensor_parallel=8", "engines.tensor_parallel is 8"),
    ],
)
def test_the_launcher_refuses_what_megatron_and_vllm_would(
    name: str, override: str, named: str, model: Any
) -> None:
    recipe = load_recipe(ROOT / "recipes/deepsearch_7b.yaml", [f"model.path={model(name)}", override])
    with pytest.raises(RecipeError, match=named):
        check_model(recipe)


def test_what_a_lag_overlaps_is_said(model: Any) -> None:
    for lag, said in ((0, False), (2, True)):
        result = command(
            "deepsearch_32b", model("qwen2.5-32b"), f"rollout.max_lag={lag}", "limits.sync_timeout=500"
        )
        assert ("rollout.max_lag is 2: groups are played beside" in result.output) == said
