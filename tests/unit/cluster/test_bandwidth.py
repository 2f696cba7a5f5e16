"""Bandwidth from given times and sizes, exactly as nccl-tests' doc/PERFORMANCE.md defines it."""

import pytest

from megatron_empg.cluster.nccl_suite.bandwidth import algorithm_bandwidth, bus_bandwidth, bus_factor


def test_algorithm_bandwidth_is_bytes_by_time_in_decimal_gigabytes() -> None:
    assert algorithm_bandwidth(128 * 2**20, 0.001) == 134.217728


@pytest.mark.parametrize(
    ("operation", "ranks", "expected"),
    [
        ("all_reduce", 2, 100.0),
        ("all_reduce", 8, 175.0),
        ("all_reduce", 64, 196.875),
        ("reduce_scatter", 8, 87.5),
        ("all_gather", 8, 87.5),
        ("all_to_all", 4, 75.0),
        ("broadcast", 8, 100.0),
        ("send_recv", 8, 100.0),
    ],
)
def test_bus_bandwidth_of_a_gigabyte_in_ten_milliseconds(operation: str, ranks: int, expected: float) -> None:
    assert bus_bandwidth(operation, 10**9, 0.01, ranks) == expected


def test_an_operation_without_a_definition_has_no_bus_bandwidth() -> None:
    with pytest.raises(KeyError, match="barrier"):
        bus_factor("barrier", 8)
