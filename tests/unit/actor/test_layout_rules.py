"""What sizes can be is said once, in the words of a recipe, whoever asks: recipe, planner, actor or engine."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_empg.actor.config import ActorConfig
from megatron_empg.actor.layout_rules import (
    batch_faults,
    engine_faults,
    episode_faults,
    exchange_faults,
    heads_divide,
    model_faults,
    rank_faults,
    size_faults,
)
from megatron_empg.weights.mapping.model_config import Experts, ModelConfig

MODEL = ModelConfig(
    family="qwen2", hidden_size=64, num_layers=12, num_heads=8, num_kv_heads=4, head_dim=8, intermediate_size=96,
    vocab_size=301, max_position_embeddings=512, rope_theta=1e4, rms_norm_eps=1e-6, tie_word_embeddings=False,
    qkv_bias=True,
)  # fmt: skip
OF_EXPERTS = replace(
    MODEL, family="qwen3_moe", experts=Experts(number=6, per_token=2, intermediate_size=32, normalise=True)
)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sequence_parallel": True}, "actor.sequence_parallel is True with actor.tensor_parallel 1"),
        ({"virtual_pipeline": 2}, "actor.virtual_pipeline is 2 with actor.pipeline_parallel 1"),
        ({"context_exchange": "p2p"}, "actor.context_exchange is p2p with actor.context_parallel 1"),
        ({"expert_parallel": 4, "data_parallel": 6}, "does not divide a stage's 6 ranks"),
    ],
)
def test_a_key_that_means_nothing_beside_the_others_is_a_fault(keys: dict[str, Any], said: str) -> None:
    (fault,) = size_faults(ActorConfig(**keys))
    assert said in fault


def test_every_key_has_its_degree() -> None:
    whole = ActorConfig(
        tensor_parallel=2, sequence_parallel=True, pipeline_parallel=2, virtual_pipeline=2, context_parallel=2,
        context_exchange="a2a", expert_parallel=4, data_parallel=3,
    )  # fmt: skip
    assert size_faults(whole) == []
    assert (whole.world_size, whole.stage_ranks, whole.chunks) == (24, 12, 4)


@pytest.mark.parametrize(
    ("config", "keys", "said"),
    [
        (
            MODEL,
            {"tensor_parallel": 3},
            "actor.tensor_parallel is 3, which does not divide the model's num_attention",
        ),
        (
            MODEL,
            {"pipeline_parallel": 5},
            "actor.pipeline_parallel is 5, which does not divide the model's num_hidden",
        ),
        (
            MODEL,
            {"pipeline_parallel": 2, "virtual_pipeline": 4},
            "actor.pipeline_parallel x actor.virtual_pipeline is 8, which does not divide",
        ),
        (
            MODEL,
            {"tensor_parallel": 2, "context_parallel": 4, "context_exchange": "a2a"},
            "splits the 4 heads and 2 key-value groups of a tensor-parallel rank",
        ),
        (MODEL, {"expert_parallel": 2}, "but the model has no experts"),
        (OF_EXPERTS, {"expert_parallel": 4}, "does not divide the model's experts (6)"),
        (OF_EXPERTS, {"tensor_parallel": 2}, "actor.sequence_parallel is false with actor.tensor_parallel 2"),
    ],
)
def test_a_layout_that_a_model_cannot_have_is_a_fault(
    config: ModelConfig, keys: dict[str, Any], said: str
) -> None:
    faults = model_faults(ActorConfig(**keys), config)
    assert any(said in fault for fault in faults), faults


def test_other_exchanges_leave_heads_alone() -> None:
    for exchange in ("p2p", "all_gather", None):
        assert model_faults(ActorConfig(context_parallel=8, context_exchange=exchange), MODEL) == []
    assert heads_divide(4, 2, 2)
    assert not heads_divide(4, 2, 4)


def test_an_episode_fits_the_model_and_a_microbatch() -> None:
    assert model_faults(ActorConfig(), MODEL, longest_sequence=512) == []
    (fault,) = model_faults(ActorConfig(), MODEL, longest_sequence=513)
    assert fault.startswith("rollout.max_episode_tokens is 513, more than the model's max_position_embeddings")
    padded = ActorConfig(context_parallel=2, max_tokens_per_microbatch=101)
    assert episode_faults(padded, 200) == []
    assert "(200: actor.max_tokens_per_microbatch" in episode_faults(padded, 201)[0]


def test_every_stage_of_every_pipeline_gets_an_episode() -> None:
    actor = ActorConfig(data_parallel=4, pipeline_parallel=2)
    assert batch_faults(actor, 8, "") == []
    assert "(rollout.groups 7 x 1), too few for the layout" in batch_faults(actor, 7, "rollout.groups 7 x 1")[0]


def test_engines_share_heads_evenly_or_a_head_in_whole_groups() -> None:
    assert [size for size in range(1, 9) if not engine_faults(size, MODEL)] == [1, 2, 4, 8]
    assert "neither a divisor nor a multiple" in engine_faults(4, replace(MODEL, num_heads=12, num_kv_heads=6))[0]


def test_ranks_and_machine_are_what_the_layout_wants() -> None:
    actor = ActorConfig(tensor_parallel=2, context_parallel=2, context_exchange="p2p")
    assert rank_faults(actor, 4) == []
    assert (
        "needs 4 ranks (tensor 2 x pipeline 1 x context 2 x data 1) but 3 were started" in rank_faults(actor, 3)[0]
    )
    assert exchange_faults(actor, ("p2p", "a2a"), "bfloat16") == []
    (fault,) = exchange_faults(actor, ("all_gather", "a2a"), "float32")
    assert fault.endswith("in float32; it can do all_gather and a2a")
