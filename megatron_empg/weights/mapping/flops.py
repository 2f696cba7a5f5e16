"""Floating-point operations of a model, counted from its shape."""

from megatron_empg.weights.mapping.model_config import ModelConfig


def flops_by_part(config: ModelConfig, length: int, predicted: int | None = None) -> dict[str, float]:
    """Floating-point operations of one sequence's forward pass; backward takes twice as many.

    ``projections`` and (causal) ``attention`` are attention's two parts, ``mlp`` is the MLP, or a token's experts
    and their router, ``head`` the LM head at ``predicted`` of the sequence's positions (None: at all).
    """
    heads, hidden, layers = config.num_heads * config.head_dim, config.hidden_size, config.num_layers
    mlp = 3 * hidden * config.intermediate_size
    if config.experts is not None:
        mlp = hidden * (3 * config.experts.intermediate_size * config.experts.per_token + config.experts.number)
    if predicted is None:
        predicted = length
    kv_heads = config.num_kv_heads * config.head_dim
    in_layers = 2.0 * length * layers  # a multiply-add is two operations
    return {
        "projections": in_layers * hidden * 2 * (heads + kv_heads),
        # Scores and weighted sums are 2·length·heads multiply-adds a token; causality halves them.
        "attention": in_layers * length * heads,
        "mlp": in_layers * mlp,
        "head": 2.0 * predicted * hidden * config.vocab_size,
    }


def forward_flops(config: ModelConfig, length: int, predicted: int | None = None) -> float:
    """All of `flops_by_part`."""
    return sum(flops_by_part(config, length, predicted).values())
