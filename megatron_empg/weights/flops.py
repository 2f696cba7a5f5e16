"""Floating-point operations of a model, counted from its shape."""

from megatron_empg.weights.model_config import ModelConfig


def forward_flops(config: ModelConfig, length: int) -> float:
    """Of one sequence's forward pass, LM head and causal attention counted; backward is twice as much."""
    attention = config.num_heads * config.head_dim
    projections = config.hidden_size * (2 * attention + 2 * config.num_kv_heads * config.head_dim)
    per_token = config.num_layers * (projections + 3 * config.hidden_size * config.intermediate_size)
    head = config.hidden_size * config.vocab_size
    # Scores and weighted sums are 2·length·attention multiply-adds a token; causality halves them.
    return 2.0 * length * (per_token + head + config.num_layers * length * attention)
