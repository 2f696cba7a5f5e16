"""What trainer rank 0 holds to send weights to the engines: vLLM packs tensors into chunks, on streams of its own.

What a stream has taken from the allocator is not given back for other streams, so it counts beside an update's
peak.
"""

import math
from functools import lru_cache

from megatron_empg.planner.assumptions import PACKED_BUFFER_BYTES, PACKED_BUFFERS
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameters import parameter_table


@lru_cache
def transfer_bytes(config: ModelConfig, dtype_bytes: int, tensor_parallel: int) -> int:
    """Bytes on rank 0's GPU: for each of vLLM's buffers, the most that packing a chunk takes.

    Either a chunk's tensors and their packed copy, or the tensors so far and a Megatron parameter in two copies:
    its tensor-parallel pieces and the whole, or the whole and what it is split into.
    """
    fullest, held = 0, 0
    for parameter in parameter_table(config):
        whole = math.prod(parameter.padded_shape(tensor_parallel)) * dtype_bytes
        fullest = max(fullest, held + 2 * whole)
        for shape in parameter.shapes:
            held += math.prod(shape) * dtype_bytes
            if held > PACKED_BUFFER_BYTES:
                fullest, held = max(fullest, 2 * held), 0
    return PACKED_BUFFERS * max(fullest, 2 * held)
