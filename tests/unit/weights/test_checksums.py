"""A checksum sees every changed bit and every two elements that changed places, in each dtype that is sent."""

import pytest
import torch

from megatron_empg.weights.sync.checksums import CHECKSUMS, ROW, Arrival, ChecksumError, Checksums, checksum

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def drawn(size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 3, 4, 37, 2 * ROW, 4 * ROW, 10 * ROW + 7])
def test_a_flipped_bit_changes_the_sum(dtype: torch.dtype, size: int) -> None:
    whole = drawn(size, dtype)
    before = checksum(whole).item()
    assert checksum(whole.clone()).item() == before
    length = len(bits_of(whole))
    for place in sorted({0, length // 3, length // 2, length - 1}):
        for bit in (0, 7):
            bits_of(whole)[place] ^= 1 << bit
            assert checksum(whole).item() != before, (place, bit)
            bits_of(whole)[place] ^= 1 << bit
    assert checksum(whole).item() == before


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_that_change_places_change_the_sum(dtype: torch.dtype) -> None:
    """Also those that differ in their sign alone, which a plain weighted sum of words takes for equal."""
    size = 6 * ROW * (8 // dtype.itemsize) + 5
    whole = drawn(size, dtype)
    row = ROW * 8 // dtype.itemsize
    for first, second in [(0, 1), (3, 3 + row), (2, 2 + 4 * row), (7, size - 1), (row - 1, row)]:
        whole[second] = -whole[first]
        before = checksum(whole).item()
        swapped = whole.clone()
        swapped[[first, second]] = whole[[second, first]]
        assert checksum(swapped).item() != before, (first, second)


def test_rows_and_columns_that_change_places_change_the_sum() -> None:
    words = torch.randint(-(2**62), 2**62, (6, ROW), generator=torch.Generator().manual_seed(0))
    before = checksum(words).item()
    assert checksum(words[[1, 0, 2, 3, 4, 5]]).item() != before
    assert checksum(words.roll(1, dims=1)).item() != before
    mixed = words.clone()
    mixed[0, 0], mixed[0, 1], mixed[1, 0], mixed[1, 1] = words[1, 1], words[1, 0], words[0, 1], words[0, 0]
    assert checksum(mixed).item() != before


def test_sums_of_many_tensors_differ() -> None:
    sums = {checksum(drawn(65, torch.bfloat16, seed)).item() for seed in range(300)}
    zeros = {checksum(torch.zeros(size)).item() for size in (ROW, 2 * ROW, 4 * ROW)}
    assert len(sums) == 300
    assert len(zeros) == 3


def test_the_sum_is_of_the_values_wherever_they_lie() -> None:
    """A slice of a packed buffer that begins anywhere, and a view with other strides."""
    whole = drawn(6 * ROW + 3, torch.bfloat16)
    expected = checksum(whole).item()
    for offset in range(1, 8):
        packed = torch.cat([drawn(offset, torch.bfloat16, 1), whole])
        assert checksum(packed[offset:]).item() == expected
    matrix = drawn(12 * 14, torch.float32).view(12, 14)
    assert checksum(matrix.t()).item() == checksum(matrix.t().contiguous()).item()
    assert checksum(matrix.t()).item() != checksum(matrix).item()


def arrive(arrival: Arrival, sent: list[tuple[str, torch.Tensor]]) -> list[str]:
    return [name for name, _ in arrival.pairs(sent)]


def transfer(count: int = 3) -> list[tuple[str, torch.Tensor]]:
    """Tensors, and the sender's sums behind them."""
    tensors = [(f"w{i}", drawn(40, torch.bfloat16, i)) for i in range(count)]
    sums = Checksums()
    for _, tensor in tensors:
        sums.add(tensor)
    return [*tensors, (CHECKSUMS, sums.as_tensor())]


def test_what_arrived_as_it_was_sent_passes() -> None:
    arrival = Arrival("worker 1")
    assert arrive(arrival, transfer()) == ["w0", "w1", "w2"]
    arrival.check()


def test_a_flipped_bit_is_told_by_tensor_receiver_and_both_sums() -> None:
    sent = transfer()
    before = checksum(sent[1][1]).item() % 2**64
    bits_of(sent[1][1])[11] ^= 4
    after = checksum(sent[1][1]).item() % 2**64
    arrival = Arrival("worker 5")
    arrive(arrival, sent)
    says = rf"1 of 3 tensors changed on their way to worker 5: w1 \(sent {before:016x}, arrived {after:016x}\)"
    with pytest.raises(ChecksumError, match=says):
        arrival.check()


def test_tensors_that_came_in_each_others_place_are_found() -> None:
    (first, one), (second, two), *rest = transfer()
    arrival = Arrival("worker 1")
    arrive(arrival, [(first, two), (second, one), *rest])
    with pytest.raises(ChecksumError, match="2 of 3 tensors changed"):
        arrival.check()


def test_a_transfer_without_sums_or_with_too_few_fails() -> None:
    arrival = Arrival("worker 1")
    arrive(arrival, transfer()[:-1])
    with pytest.raises(ChecksumError, match="worker 1 got 0 lists of checksums"):
        arrival.check()
    sent, arrival = transfer(), Arrival("worker 1")
    arrive(arrival, [*sent[:2], sent[-1]])
    with pytest.raises(ChecksumError, match="worker 1 got 2 tensors and checksums of 3"):
        arrival.check()
