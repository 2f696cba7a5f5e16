"""Rotary positions: Llama 3's stretching beyond the context of pretraining, and one table for all lengths."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from megatron_empg.weights.mapping.model_config import RopeScaling


def scaled_frequencies(
    frequencies: Float[Tensor, "half_head_dim"], scaling: RopeScaling
) -> Float[Tensor, "half_head_dim"]:
    """Inverse frequencies, stretched by wavelength (transformers' rope type ``llama3``).

    Megatron-core's own version fixes the two wavelength factors and the original context.
    """
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)  # within the original context
    span = scaling.high_freq_factor - scaling.low_freq_factor
    unscaled = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
    return torch.lerp(frequencies / scaling.factor, frequencies, unscaled)


def one_rotary_table(model: Any, length: int) -> None:
    """Let the model's rotary table for any number of positions be the start of one of ``length``.

    Megatron keeps a table of its own for each of the last 32 numbers asked for, and the longest sequences of
    packed microbatches are seldom alike.
    """
    embedding = model.rotary_pos_emb
    original = embedding.forward

    def forward(positions: int, *args: Any, packed_seq: bool = False, **kwargs: Any) -> Tensor:
        table: Tensor
        if packed_seq and positions <= length:
            table = original(length, *args, packed_seq=packed_seq, **kwargs)[:positions]
        else:
            table = original(positions, *args, packed_seq=packed_seq, **kwargs)
        return table

    embedding.forward = forward
