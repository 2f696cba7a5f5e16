"""The plan of a run from its recipe, and on the way to the batch host."""

from pathlib import Path

import pytest

from megatron_empg.launch.recipe_plan import engine_settings, plan_of
from megatron_empg.launch.run_plan import RunPlan
from megatron_empg.recipe import SftRecipe, load_recipe
from tests.support.recipes import quickstart


def test_a_plan_says_what_the_launcher_must_know(tmp_path: Path) -> None:
    keys = ("engines.count=3", "engines.tensor_parallel=2", "actor.tensor_parallel=2", "actor.data_parallel=4")
    plan = plan_of(quickstart(f"run.folder={tmp_path}", *keys))
    assert (plan.kind, plan.run_folder, plan.checkpoint, plan.finished) == ("train", str(tmp_path), 0, False)
    assert (plan.engines, plan.engine_size, plan.trainer_ranks, plan.model_parallel) == (3, 2, 8, 2)
    assert plan.layout == "tensor 2 x pipeline 1 x context 1 x data 4"
    assert plan_of(quickstart("engines.start_timeout=70")).engine_start_seconds == 70
    (search,) = plan.services
    assert (search.name, search.setting, search.token_variable) == ("search", "search_url", "EMPG_SEARCH_TOKEN")
    assert plan_of(quickstart(), starts_services=False).services == ()


@pytest.mark.parametrize(("silence", "sync", "core"), [(60, 600, 660), (60, 90, 150), (900, 90, 960)])
def test_a_core_may_be_silent_for_longer_than_the_longest_weight_transfer(
    silence: float, sync: float, core: float
) -> None:
    plan = plan_of(quickstart(f"engines.silence_timeout={silence}", f"limits.sync_timeout={sync}"))
    assert (plan.silence_seconds, plan.core_silence_seconds) == (silence, core)


def test_it_is_the_same_on_the_batch_host(tmp_path: Path) -> None:
    plan = plan_of(quickstart(f"run.folder={tmp_path}"))
    assert RunPlan.from_json(plan.to_json()) == plan
    for torn in ("", "{}", "[]", plan.to_json()[:-2], '{"kind": "train"}'):
        with pytest.raises(ValueError, match="this is not a plan of a run"):
            RunPlan.from_json(torn)


def test_a_checkpoint_is_seen(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/step_000004").mkdir(parents=True)
    assert plan_of(quickstart(f"run.folder={tmp_path}")).checkpoint == 4


def test_a_supervised_run_has_neither_engines_nor_services() -> None:
    plan = plan_of(load_recipe("recipes/miniature_sft.yaml", [], SftRecipe))
    assert (plan.kind, plan.engines, plan.engine_arguments, plan.services) == ("sft", 0, (), ())


@pytest.mark.parametrize(("given", "bytes_of_cache"), [("null", None), ("0.5", 2**29)])
def test_an_engine_s_settings_are_the_recipe_s(given: str, bytes_of_cache: int | None) -> None:
    settings = engine_settings(quickstart(f"engines.kv_cache_gib={given}", "rollout.concurrency=4096"))
    assert (settings.kv_cache_bytes, settings.max_num_seqs) == (bytes_of_cache, 1024)
    few = engine_settings(quickstart("rollout.concurrency=16", "engines.tensor_parallel=2"))
    assert (few.max_num_seqs, few.tensor_parallel) == (16, 2)
