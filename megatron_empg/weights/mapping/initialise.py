"""Random initial weights, the same in every layout: drawn for each full tensor from its own seed."""

import zlib

import torch
from torch import Tensor

from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameter_mapping import ParameterMapping


def random_tensors(parameter: ParameterMapping, config: ModelConfig, seed: int) -> list[Tensor]:
    """The parameter's Hugging Face tensors in float32.

    Norm weights are 1 and biases 0. Embeddings have standard deviation `initializer_range`; projections
    1/sqrt(inputs), halved where they write into the residual stream: at small widths this learns much faster
    than one deviation for all.
    """
    made = []
    for name, shape in zip(parameter.hf, parameter.shapes, strict=True):
        if name.endswith("bias"):
            made.append(torch.zeros(shape))
        elif len(shape) == 1:
            made.append(torch.ones(shape))
        else:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
            deviation = parameter.initial_deviation(shape, config.initializer_range)
            made.append(torch.randn(shape, generator=generator) * deviation)
    return made
