"""Small random Hugging Face models for tests."""

from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2-untied": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "qwen2-one-group": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": False},
}


def save_random_model(folder: Path, shape: str = "qwen2", *, seed: int = 0, vocab_size: int = 301) -> Any:
    """Write a random model of the family to ``folder``; returns the float32 Hugging Face model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config_class, model_class = (
        (LlamaConfig, LlamaForCausalLM) if shape == "llama" else (Qwen2Config, Qwen2ForCausalLM)
    )
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
