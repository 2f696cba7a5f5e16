"""A config.json is understood whole: what the published ones hold is known, and what is not known is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.weights.mapping.model_config import ModelConfig, ModelConfigError

CONFIGS = Path(__file__).parent / "configs"
QWEN: dict[str, Any] = {"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
                        "torch_dtype": "bfloat16", "transformers_version": "4.43", "use_cache": True}  # fmt: skip
LLAMA: dict[str, Any] = {
    "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": [128001, 128009], "pretraining_tp": 1,
    "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": True, "mlp_bias": False,
}  # fmt: skip
SMOL: dict[str, Any] = {
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "is_llama_config": True,
    "pretraining_tp": 1, "rope_interleaved": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
    "transformers.js_config": {"dtype": "q4", "kv_cache_dtype": {"q4f16": "float16"}}, "use_cache": True,
}  # fmt: skip
WHOLE = {
    "qwen2.5-7b": QWEN,
    "qwen2.5-32b": QWEN,
    "qwen3-32b": {**QWEN, "transformers_version": "4.51.0"},
    "qwen3-30b-a3b": {**QWEN, "output_router_logits": False, "router_aux_loss_coef": 0.001},
    "llama-3-8b": {**LLAMA, "eos_token_id": 128001},
    "llama-3.1-8b": LLAMA,
    "smollm2-135m": SMOL,
}
"""What the published files hold beside the keys of configs/."""


def raw(name: str, **changes: Any) -> dict[str, Any]:
    return {**json.loads((CONFIGS / f"{name}.json").read_text()), **WHOLE[name], **changes}


@pytest.mark.parametrize("name", WHOLE)
def test_a_published_config_is_understood(name: str) -> None:
    assert ModelConfig.from_dict(raw(name)) == ModelConfig.from_dict(
        json.loads((CONFIGS / f"{name}.json").read_text())
    )


def test_published_shapes_of_other_sizes_are_understood() -> None:
    small = raw("llama-3.1-8b", head_dim=64, hidden_size=2048, num_hidden_layers=16, tie_word_embeddings=True)
    small["rope_scaling"] = {**small["rope_scaling"], "factor": 32.0}
    assert ModelConfig.from_dict(small).head_dim == 64  # Llama 3.2 1B
    large = raw(
        "smollm2-135m", hidden_size=2048, num_attention_heads=32, num_key_value_heads=32, rope_theta=130000
    )
    assert ModelConfig.from_dict(large).rope_theta == 130000  # SmolLM2 1.7B


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Llama", "Qwen3Moe"])
def test_all_that_the_installed_transformers_writes_is_understood(family: str, tmp_path: Path) -> None:
    import transformers

    config = getattr(transformers, f"{family}Config")(architectures=[f"{family}ForCausalLM"])
    assert ModelConfig.from_dict(config.to_dict()).rope_theta == 10000
    config.save_pretrained(tmp_path)
    assert ModelConfig.from_folder(tmp_path) == ModelConfig.from_dict(config.to_dict())


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("qwen2.5-7b", {"final_logit_softcapping": 30.0}, "final_logit_softcapping: 30.0 is not supported"),
        ("qwen3-32b", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: 50.0"),
        ("qwen3-32b", {"attn_output_gate": True}, "attn_output_gate: True is not supported; supported: False"),
        ("qwen3-32b", {"layer_types": ["full_attention"] * 63 + ["linear_attention"]}, "layer_types: 'linear_att"),
        ("qwen3-32b", {"layer_types": ["full_attention"]}, "layer_types: names 1 layers, num_hidden_layers is 64"),
        ("qwen3-32b", {"layer_types": "full"}, "layer_types: 'full'"),
        ("qwen3-30b-a3b", {"shared_expert_intermediate_size": 512}, "shared_expert_intermediate_size: 512"),
        ("qwen3-30b-a3b", {"scoring_func": "sigmoid"}, "scoring_func: 'sigmoid' is not supported; supported: 's"),
        ("qwen3-30b-a3b", {"n_group": 8}, "n_group: 8"),
        ("qwen3-30b-a3b", {"routed_scaling_factor": 2.5}, "routed_scaling_factor: 2.5"),
        ("qwen3-30b-a3b", {"num_local_experts": 64}, "num_experts: 128, but num_local_experts is 64"),
        ("qwen3-30b-a3b", {"num_experts_per_tok": 129}, "num_experts_per_tok: 129 of 128"),
        ("qwen3-32b", {"num_experts": 8}, "num_experts: 8 is not supported; supported: 0"),
        ("qwen3-32b", {"norm_topk_prob": True}, "norm_topk_prob: True is not understood"),
        ("llama-3-8b", {"alibi": True}, "alibi: True"),
        ("llama-3-8b", {"rotary_pct": 0.25}, "rotary_pct: 0.25"),
        ("llama-3-8b", {"no_rope_layers": [1, 0]}, r"no_rope_layers: \[1, 0\] is not understood"),
        ("llama-3-8b", {"a_key_of_next_year": False}, "a_key_of_next_year: False is not understood"),
        ("llama-3-8b", {"logits_scaling": True}, "logits_scaling: True is not supported; supported: 1"),
        ("llama-3-8b", {"sliding_window": 4096}, "sliding_window: 4096"),
        ("llama-3-8b", {"model_type": "mistral"}, "model_type: 'mistral' is not of the architecture Llama"),
        ("llama-3-8b", {"architectures": "LlamaForCausalLM"}, "architectures: 'LlamaForCausalLM' is not a list"),
        ("qwen2.5-7b", {"auto_map": {"AutoModelForCausalLM": "m.Mine"}}, "auto_map: the model brings its own"),
        # Values of a wrong kind
        ("llama-3-8b", {"hidden_size": "4096"}, "hidden_size: '4096' is not a positive integer"),
        ("llama-3-8b", {"hidden_size": 4096.0}, "hidden_size: 4096.0 is not a positive integer"),
        ("llama-3-8b", {"num_hidden_layers": True}, "num_hidden_layers: True is not a positive integer"),
        ("llama-3-8b", {"vocab_size": -1}, "vocab_size: -1"),
        ("llama-3-8b", {"vocab_size": None}, "vocab_size: missing"),
        ("llama-3-8b", {"rms_norm_eps": "1e-5"}, "rms_norm_eps: '1e-5' is not a positive number"),
        ("llama-3-8b", {"rms_norm_eps": float("nan")}, "rms_norm_eps: nan"),
        ("llama-3-8b", {"tie_word_embeddings": "false"}, "tie_word_embeddings: 'false' is neither true nor false"),
        ("llama-3-8b", {"num_key_value_heads": 5}, r"num_key_value_heads: 5 does not divide .* \(32\)"),
        ("llama-3-8b", {"num_attention_heads": 33, "num_key_value_heads": 33}, "num_attention_heads: 33 does not"),
        ("llama-3-8b", {"head_dim": 127}, "head_dim: 127 is odd"),
    ],
)  # fmt: skip
def test_what_would_change_the_mathematics_is_refused(name: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelConfigError, match=says):
        ModelConfig.from_dict(raw(name, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"final_logit_softcapping": None},
        {"a_key_of_next_year": None},
        {"attn_output_gate": False},
        {"num_experts": 0, "shared_expert_intermediate_size": 0},
        {"layer_types": ["full_attention"] * 64},
        {"auto_map": {"AutoTokenizer": "t.Mine"}},
        {"partial_rotary_factor": 1.0},
        {"head_dim": 128, "num_key_value_heads": 8},
    ],
)
def test_a_key_at_its_neutral_value_is_no_fault(changes: dict[str, Any]) -> None:
    assert ModelConfig.from_dict(raw("qwen3-32b", **changes)) == ModelConfig.from_dict(raw("qwen3-32b"))


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 1e6},
        {"rope_theta": 1000000, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 1e6}},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
    ],
)
def test_the_base_of_the_frequencies_is_read_from_where_it_stands(rope: dict[str, Any]) -> None:
    config = ModelConfig.from_dict(raw("qwen3-32b") | {"rope_theta": None, **rope})
    assert (config.rope_theta, config.rope_scaling) == (1e6, None)


@pytest.mark.parametrize(
    ("rope", "says"),
    [
        ({}, "rope_theta: missing"),
        ({"rope_scaling": {"type": "default"}}, "rope_theta: missing"),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}},
            r"rope_theta \(10000\) and rope_parameters\.",
        ),
        ({"rope_theta": "1e6"}, "rope_theta: '1e6' is not a positive number"),
        ({"rope_theta": 0}, "rope_theta: 0"),
        ({"rope_theta": 1e4, "rope_scaling": [1]}, r"rope_scaling: \[1\] is not a group of keys"),
        ({"rope_theta": 1e4, "rope_scaling": {"factor": 4.0}}, r"rope_scaling\.factor: 4.0 is not understood"),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "default", "mrope_section": [1]}},
            r"rope_scaling\.mrope_section",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}},
            r"rope_parameters\.full_attention: positions of their own",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": LLAMA3, "rope_parameters": {**LLAMA3, "factor": 32.0}},
            "rope_parameters and rope_scaling differ",
        ),
        ({"rope_theta": 1e4, "rope_scaling": {**LLAMA3, "factor": "8"}}, r"rope_scaling\.factor: '8'"),
        ({"rope_theta": 1e4, "rope_scaling": {**LLAMA3, "low_freq_factor": 4}}, "is not below high_freq_factor"),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial",
        ),
    ],
)
def test_positions_that_are_not_understood_are_refused(rope: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelConfigError, match=says):
        ModelConfig.from_dict(raw("qwen3-32b") | {"rope_theta": None, **rope})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "line 1, column 1: the file is empty"),
        (b"\n[1, 2]", "holds a list instead of keys and values"),
        (b'"text"', "holds text"),
        (b'{"hidden_size": 3,\n "x": }', "line 2, column 7: not JSON"),
        ('{\n"_name_or_path": "größe"}'.encode("latin-1"), "line 2: not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'{"architectures": ["LlamaForCausalLM"], "model_type": 7}', "model_type: 7"),
    ],
)
def test_a_file_that_is_no_configuration_is_named_with_its_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelConfigError, match=says) as caught:
        ModelConfig.from_folder(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match=r"cannot read .*nowhere/config\.json: No such file.*hf download"):
        ModelConfig.from_folder(tmp_path / "nowhere")
