"""Floating-point operations of a model, counted from its shape."""

from megatron_empg.weights.mapping.model_config import ModelConfig


def flops_by_part(config: ModelConfig, length: int, predicted: int | None = None) -> dict[str, float]:
    """Floating-point operations of one sequence's forward pass; backward takes twice as many.

    ``projections`` and (causal) ``attention`` are attention's two parts, ``mlp`` is the MLP, or a token's experts
    and their router, ``head`` the LM head at ``predicted`` of the sequence's positions (None: at all).
    """
    hidden, layers = config.hidden_size, config.num_layers
    query_width = config.num_heads * config.head_dim
    key_width = config.num_kv_heads * config.head_dim  # values are as wide
    mlp = 3 * hidden * config.intermediate_size
    if config.experts is not None:
        mlp = hidden * (3 * config.experts.intermediate_size * config.experts.per_token + config.experts.number)
    if predicted is None:
        predicted = length
    in_layers = 2.0 * length * layers  # a multiply-add is two operations
    return {
        "projections": in_layers * hidden * 2 * (query_width + key_width),
        # Scores and weighted sums are 2·length·query_width multiply-adds per token; causality halves them.
        "attention": in_layers * length * query_width,
        "mlp": in_layers * mlp,
        "head": 2.0 * predicted * hidden * config.vocab_size,
    }


def forward_flops(config: ModelConfig, length: int, predicted: int | None = None) -> float:
    """All of `flops_by_part`."""
    return sum(flops_by_part(config, length, predicted).values())
