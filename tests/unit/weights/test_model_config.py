"""config.json as the project reads it: what is represented, and what is refused by name."""

import pytest

from megatron_empg.weights.mapping.model_config import ModelConfig


def config(**changes: object) -> ModelConfig:
    shape = {"family": "llama", "hidden_size": 64, "num_layers": 4, "num_heads": 12, "num_kv_heads": 2,
             "head_dim": 16, "intermediate_size": 96, "vocab_size": 301, "max_position_embeddings": 512,
             "rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "qkv_bias": False}  # fmt: skip
    return ModelConfig(**{**shape, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_kv_heads", "tensor_parallel", "fits"),
    [(2, 1, True), (2, 2, True), (2, 4, True), (2, 12, False), (1, 3, True), (3, 2, False), (4, 6, False)],
)
def test_ranks_may_share_a_key_value_head_in_whole_groups(
    num_kv_heads: int, tensor_parallel: int, fits: bool
) -> None:
    shape = config(num_kv_heads=num_kv_heads, head_dim=4 if tensor_parallel == 12 else 12)
    faults = shape.layout_faults(tensor_parallel=tensor_parallel, pipeline_parallel=1, max_sequence_length=8)
    assert (not faults) == fits, faults
    assert fits or f"num_key_value_heads ({num_kv_heads})" in faults[0].told("tensor_parallel")
