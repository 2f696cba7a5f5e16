"""Bandwidth as nccl-tests defines it (its doc/PERFORMANCE.md): algorithm S/t, bus S/t x factor.

S is nccl-tests' "size": all ranks' data together for all_gather (received), reduce_scatter and all_to_all
(given), one rank's data for the others. GB are 10^9 bytes.
"""


def algorithm_bandwidth(size: int, seconds: float) -> float:
    """GB/s: bytes by time."""
    return size / seconds / 1e9


def bus_factor(operation: str, ranks: int) -> float:
    """What every algorithm must at least move through the slowest link, per byte of size.

    Raises KeyError for an operation without a definition.
    """
    rest = (ranks - 1) / ranks
    return {
        "all_reduce": 2 * rest,
        "reduce_scatter": rest,
        "all_gather": rest,
        "all_to_all": rest,
        "broadcast": 1.0,
        "send_recv": 1.0,
    }[operation]


def bus_bandwidth(operation: str, size: int, seconds: float, ranks: int) -> float:
    """GB/s, comparable with the hardware's whatever the operation and the number of ranks."""
    return algorithm_bandwidth(size, seconds) * bus_factor(operation, ranks)
