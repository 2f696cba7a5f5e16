"""Small random Hugging Face models for tests."""

from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2-untied": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "qwen2-one-group": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "llama-tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama3": {
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 4.0,
            "low_freq_factor": 1.5,
            "high_freq_factor": 3.0,
            "original_max_position_embeddings": 16,
        },
    },
    "qwen3": {"num_key_value_heads": 2, "tie_word_embeddings": True, "head_dim": 24},
    "qwen3-untied": {"num_key_value_heads": 1, "tie_word_embeddings": False, "head_dim": 32},
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "head_dim": 24,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "norm_topk_prob": True,
    },
    "qwen3_moe-raw": {
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": False,
    },
}
CLASSES = {
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "llama": "Llama",
    "llama3": "Llama",
    "qwen3_moe": "Qwen3Moe",
}


def save_random_model(folder: Path, shape: str = "qwen2", *, seed: int = 0, vocab_size: int = 301) -> Any:
    """Write a random model of the family to ``folder``; returns the float32 Hugging Face model."""
    import torch
    import transformers

    family = CLASSES[shape.partition("-")[0]]
    config_class = getattr(transformers, f"{family}Config")
    model_class = getattr(transformers, f"{family}ForCausalLM")
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.1,
        rms_norm_eps=1e-6,
        **SHAPES[shape],
    )
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():  # biases and norms that are not all zeros and ones
        if name.endswith(".bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    model.save_pretrained(folder)
    return model


def write_sparse_weights(folder: Path, *, files: int = 1) -> None:
    """Weights that take no disk space: headers for the folder's config.json in bfloat16, then holes."""
    import json

    from megatron_empg.weights.checkpoints.hugging_face import shard_names, write_index
    from megatron_empg.weights.mapping.model_config import ModelConfig
    from megatron_empg.weights.mapping.parameters import parameter_table

    tensors: list[tuple[str, tuple[int, ...]]] = []
    for parameter in parameter_table(ModelConfig.from_folder(folder)):
        tensors += zip(parameter.hf, parameter.shapes, strict=True)
    shards = []
    for number, name in enumerate(shard_names(files)):
        header: dict[str, Any] = {}
        end = 0
        for tensor, shape in tensors[number::files]:
            begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        shards.append((list(header), end))
    write_index(folder, shards)
