"""What the environment of trainer ranks needs and that of other processes must not have."""

from collections.abc import Mapping

CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
ALLOCATOR = "PYTORCH_ALLOC_CONF"
_OLD_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"


def trainer_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Variables to add for trainer ranks, to those `given`; what the user has set wins.

    Engines, driver and services go without them: one hardware queue makes vLLM's copies wait for its kernels.
    """
    added = {}
    if not given.get(CONNECTIONS):
        # Megatron's overlap of tensor-parallel communication counts on the order of one queue.
        added[CONNECTIONS] = "1"
    if not given.get(ALLOCATOR) and not given.get(_OLD_ALLOCATOR):
        # Microbatches differ in length all the time, which fragments segments of fixed size.
        added[ALLOCATOR] = "expandable_segments:True"
    return added
