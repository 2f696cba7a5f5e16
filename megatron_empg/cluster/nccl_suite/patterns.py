"""Contents of test buffers: they depend on case, source and position, so that any wrong byte shows.

A buffer repeats a table of 8,191 random elements. The period is prime, so blocks that were swapped or shifted by a
power of two do not fit; no one table is used in two cases, so left-overs of an earlier one do not fit either.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PERIOD = 8191
_CHECKED_AT_ONCE = PERIOD * 4096
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Whole numbers up to here, and all sums that stay within, are exact.
LARGEST_SUM = {torch.bfloat16: 2**8, torch.float16: 2**11, torch.float32: 2**24, torch.int64: 2**40}


@dataclass(frozen=True)
class Mismatch:
    """The first wrong element of a buffer: its byte offset there, and what it is (text: it may be NaN)."""

    offset: int
    got: str
    expected: str


def data_table(dtype: torch.dtype, *seed: int) -> Tensor:
    """Random bits (any: also NaN) for what must arrive as it was sent."""
    integer = _INTEGERS[dtype.itemsize]
    limits = torch.iinfo(integer)
    return torch.randint(limits.min, limits.max, (PERIOD,), generator=_generator(*seed), dtype=integer).view(dtype)


def addend_table(dtype: torch.dtype, members: int, member: int, *seed: int) -> Tensor:
    """Whole numbers whose sum over ``members`` is exact in ``dtype`` in every order.

    With more members than exact ones only every so many of them add something at a position.
    """
    largest = max(1, LARGEST_SUM[dtype] // members)
    values = torch.randint(0, largest + 1, (PERIOD,), generator=_generator(*seed, member))
    stride = -(-members // LARGEST_SUM[dtype])
    values[(torch.arange(PERIOD) + member) % stride != 0] = 0
    return values.to(dtype)


def fill(buffer: Tensor, table: Tensor) -> None:
    """Repeat the table over a flat buffer."""
    whole = buffer.numel() // PERIOD * PERIOD
    table = table.to(buffer.device)
    buffer[:whole].view(-1, PERIOD).copy_(table)
    buffer[whole:].copy_(table[: buffer.numel() - whole])


def first_mismatch(buffer: Tensor, table: Tensor, tolerance: float = 0.0) -> Mismatch | None:
    """Where a flat buffer first differs from the repeated table: bit by bit, or by more than ``tolerance``."""
    table = table.to(buffer.device)
    for start in range(0, buffer.numel(), _CHECKED_AT_ONCE):
        part = buffer[start : start + _CHECKED_AT_ONCE]
        whole = part.numel() // PERIOD * PERIOD
        for at, rows in ((0, part[:whole].view(-1, PERIOD)), (whole, part[whole:].view(1, -1))):
            wrong = _differs(rows, table[: rows.shape[1]], tolerance)
            if bool(wrong.any()):
                index = int(wrong.flatten().int().argmax())
                element = rows.flatten()[index]
                expected = table[index % PERIOD]
                return Mismatch((start + at + index) * buffer.itemsize, str(element.item()), str(expected.item()))
    return None


def _differs(rows: Tensor, table: Tensor, tolerance: float) -> Tensor:
    if tolerance:
        return ~((rows.double() - table.double()).abs() <= tolerance)
    integer = _INTEGERS[rows.dtype.itemsize]
    return rows.view(integer) != table.view(integer)


def _generator(*seed: int) -> torch.Generator:
    mixed = 0
    for part in seed:
        mixed = (mixed * 1_000_003 + part + 1) % 2**62
    return torch.Generator().manual_seed(mixed)
