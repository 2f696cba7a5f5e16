"""A recipe that does not fit its model is refused by name, before anything starts."""

import json
from pathlib import Path

import pytest

from megatron_empg.recipe import RecipeError, load_recipe
from megatron_empg.trainer.check import check_model

MODEL = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 301, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 1e4,
}  # fmt: skip
RECIPE = """
run: {folder: runs/x, steps: 2}
model: {path: MODEL}
environment: {name: deep_search}
rollout: {groups: 64, group_size: 4, max_episode_tokens: 512, max_turn_tokens: 64}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("MODEL", str(tmp_path)))
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            ["actor.tensor_parallel=3"],
            ["actor.tensor_parallel is 3", "num_attention_heads (4)", "divisors: [1, 2, 4]"],
        ),
        (["actor.tensor_parallel=8"], ["actor.tensor_parallel is 8", "num_attention_heads (4)"]),
        (["actor.pipeline_parallel=4"], ["actor.pipeline_parallel is 4", "num_hidden_layers (6)"]),
        (
            ["actor.pipeline_parallel=2", "actor.virtual_pipeline=2"],
            ["actor.pipeline_parallel x actor.virtual_pipeline is 4", "num_hidden_layers (6)"],
        ),
        (
            ["actor.tensor_parallel=2", "actor.context_parallel=2", "actor.context_exchange=a2a"],
            ["actor.context_exchange is a2a", "2 heads and 1 key-value groups", "actor.context_parallel (2)"],
        ),
        (
            ["rollout.max_episode_tokens=4096"],
            ["rollout.max_episode_tokens is 4096", "max_position_embeddings (512)"],
        ),
    ],
)
def test_a_layout_that_cannot_be_is_named(path: Path, overrides: list[str], named: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        check_model(load_recipe(path, overrides))
    for part in named:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["actor.tensor_parallel=4"],  # fewer key-value heads than ranks
        ["actor.pipeline_parallel=3", "actor.virtual_pipeline=2"],
        ["actor.context_parallel=2", "actor.context_exchange=a2a"],
        ["actor.tensor_parallel=2", "actor.context_parallel=3"],
    ],
)
def test_a_layout_that_can_be_passes(path: Path, overrides: list[str]) -> None:
    assert check_model(load_recipe(path, overrides)).num_layers == 6
