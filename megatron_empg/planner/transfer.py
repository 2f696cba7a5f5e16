"""What a trainer rank that sends weights holds to do so: the first rank of each pipeline stage."""

import math
from functools import lru_cache

from megatron_empg.planner.assumptions import SENT_AT_ONCE_BYTES
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameters import EMBEDDING, OUTPUT_LAYER, parameter_table


@lru_cache
def transfer_bytes(config: ModelConfig, dtype_bytes: int, tensor_parallel: int, stages: int, stage: int) -> int:
    """Bytes on the sender of a stage: tensors that are under way, and a Megatron parameter in two copies, its
    tensor-parallel pieces and the whole, or the whole and what it is split into.

    Under way are as many bytes as go at once, and a tensor of at most that parameter's size.
    """
    largest = 0
    for parameter in parameter_table(config):
        of_ends = {EMBEDDING: 0, OUTPUT_LAYER: stages - 1}
        if of_ends.get(parameter.megatron, stage) == stage:
            largest = max(largest, math.prod(parameter.padded_shape(tensor_parallel)) * dtype_bytes)
    return SENT_AT_ONCE_BYTES + 3 * largest
