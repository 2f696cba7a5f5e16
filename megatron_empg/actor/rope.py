"""Rotary positions: Llama 3's stretching beyond the context of pretraining."""

import math

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
