"""Any wrong byte of a test buffer is seen, and sums of test values are exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_empg.cluster.nccl_suite import patterns

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64]


def filled(dtype: torch.dtype, elements: int) -> tuple[torch.Tensor, torch.Tensor]:
    table = patterns.data_table(dtype, 3, 1)
    buffer = torch.empty(elements, dtype=dtype)
    patterns.fill(buffer, table)
    return buffer, table


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(1, 30_000), st.data())
def test_one_flipped_bit_is_found_at_its_element(dtype: torch.dtype, elements: int, data: st.DataObject) -> None:
    buffer, table = filled(dtype, elements)
    assert patterns.first_mismatch(buffer, table) is None
    byte = data.draw(st.integers(0, buffer.nbytes - 1))
    buffer.view(torch.uint8)[byte] ^= 1 << data.draw(st.integers(0, 7))
    found = patterns.first_mismatch(buffer, table)
    assert found is not None
    assert found.offset == byte // dtype.itemsize * dtype.itemsize


def test_the_first_of_several_is_found_beyond_what_is_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_CHECKED_AT_ONCE", 2 * patterns.PERIOD)
    buffer, table = filled(torch.float16, 5 * patterns.PERIOD + 17)
    buffer.view(torch.int16)[[4 * patterns.PERIOD + 5, 5 * patterns.PERIOD + 16]] ^= 1
    found = patterns.first_mismatch(buffer, table)
    assert found is not None
    assert found.offset == 2 * (4 * patterns.PERIOD + 5)


@pytest.mark.parametrize("shift", [2**power for power in range(18)])
def test_shifted_data_do_not_fit(shift: int) -> None:
    buffer, table = filled(torch.bfloat16, 300_000)
    assert patterns.first_mismatch(buffer.roll(shift), table) is not None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("members", [1, 2, 7, 64, 600])
def test_sums_are_exact_in_any_order(dtype: torch.dtype, members: int) -> None:
    tables = [patterns.addend_table(dtype, members, member, 5) for member in range(members)]
    exact = sum(table.double() for table in tables)
    forward = sum(tables[1:], tables[0])
    backward = sum(reversed(tables[:-1]), tables[-1])
    assert torch.equal(forward.double(), exact)
    assert torch.equal(backward.double(), exact)
    assert len(exact.unique()) > 1
    if members > 1:
        assert not torch.equal(tables[0], tables[1])
