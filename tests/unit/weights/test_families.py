"""Names and shapes of the published models, against Hugging Face's own classes; what is refused, by its key."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_empg.weights.mapping.model_config import ModelConfig, ModelConfigError, RopeScaling
from megatron_empg.weights.mapping.parameters import parameter_table

CONFIGS = Path(__file__).parent / "configs"
PUBLISHED = {
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
    "qwen3-32b": 32_762_123_264,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "smollm2-135m": 134_515_008,
}
"""Parameters, as their model cards and safetensors headers count them."""


def named_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for parameter in parameter_table(config):
        shapes.update(zip(parameter.hf, parameter.shapes, strict=True))
    return shapes


def raw(name: str) -> dict[str, Any]:
    return dict(json.loads((CONFIGS / f"{name}.json").read_text()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_of_a_published_model(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = ModelConfig.from_dict(raw(name))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(CONFIGS / f"{name}.json"))
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert named_shapes(config) == expected
    assert sum(torch.Size(shape).numel() for shape in expected.values()) == PUBLISHED[name]


def test_experts_of_a_published_model() -> None:
    """transformers holds a layer's experts as one parameter, so names are counted here, and sizes added up."""
    config = ModelConfig.from_dict(raw("qwen3-30b-a3b"))
    shapes = named_shapes(config)
    experts = [name for name in shapes if ".mlp.experts." in name]
    assert len(experts) == 48 * 128 * 3
    assert shapes["model.layers.47.mlp.experts.127.down_proj.weight"] == (2048, 768)
    assert shapes["model.layers.0.mlp.gate.weight"] == (128, 2048)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 30_532_122_624


def changed(name: str, **changes: Any) -> dict[str, Any]:
    """With keys set, or (None) removed."""
    return {key: value for key, value in {**raw(name), **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("qwen2.5-7b", {"use_sliding_window": True}, "use_sliding_window: true"),
        ("qwen2.5-7b", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling: type 'yarn'"),
        ("qwen3-32b", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters: type 'linear'"),
        ("llama-3-8b", {"rope_scaling": {"rope_type": "dynamic"}}, "rope_scaling: type 'dynamic'"),
        ("llama-3-8b", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor"),
        ("llama-3-8b", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama-3-8b", {"attention_bias": True}, "attention_bias: True"),
        ("llama-3-8b", {"mlp_bias": True}, "mlp_bias: True"),
        ("llama-3-8b", {"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ("llama-3-8b", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("qwen3-32b", {"head_dim": None}, "head_dim: missing"),
        ("qwen3-30b-a3b", {"decoder_sparse_step": 2}, "decoder_sparse_step: 2"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [3]}, r"mlp_only_layers: \[3\]"),
        ("qwen3-30b-a3b", {"num_experts_per_tok": None}, "num_experts_per_tok: missing"),
        ("qwen2.5-7b", {"architectures": ["PhiForCausalLM"]}, "PhiForCausalLM is not supported"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_its_key(name: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelConfigError, match=says):
        ModelConfig.from_dict(changed(name, **changes))


def test_a_window_that_is_switched_off_does_not_count() -> None:
    assert raw("qwen2.5-7b")["sliding_window"] == 131072
    ModelConfig.from_dict(raw("qwen2.5-7b"))


def test_old_and_new_names_of_a_key() -> None:
    old = raw("llama-3.1-8b")
    scaling, theta = old["rope_scaling"], old["rope_theta"]
    assert ModelConfig.from_dict(old).rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)
    new = changed("llama-3.1-8b", rope_scaling=None, rope_theta=None)
    new["rope_parameters"] = {**scaling, "rope_theta": theta}
    assert ModelConfig.from_dict(new) == ModelConfig.from_dict(old)
    moe = changed("qwen3-30b-a3b", num_experts=None, num_local_experts=128)
    assert ModelConfig.from_dict(moe) == ModelConfig.from_dict(raw("qwen3-30b-a3b"))


@pytest.mark.parametrize("original", [16, 8192])
def test_scaled_frequencies_are_transformers(original: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from megatron_empg.actor.rope import scaled_frequencies

    scaling = RopeScaling(8.0, 1.5, 4.0, original)
    theirs = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.5,
            "high_freq_factor": 4.0, "original_max_position_embeddings": original,
        },
    )  # fmt: skip
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    plain = 1.0 / (500000.0 ** (torch.arange(0, 128, 2) / 128))
    ours = scaled_frequencies(plain, scaling)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    assert ((ours > plain / 7.9) & (ours < plain / 1.01)).any()  # some in between
