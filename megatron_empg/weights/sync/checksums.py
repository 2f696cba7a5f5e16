"""A checksum of every tensor, made where it is sent and where it arrives, and compared there at the end.

What is summed are the bytes on the wire, before an engine fuses or shards them. The sender's sums go the same way
as the last tensor, under the name CHECKSUMS.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from megatron_empg.common.errors import EmpgError

CHECKSUMS = "empg.checksums"
"""Name of the last tensor of a transfer: an int64 for every tensor before it."""
ROW = 4096
"""Words of eight bytes in a row of `checksum`'s grid."""
_POSITION, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
"""splitmix64's constants, as signed numbers."""
_TOLD = 2
"""Tensors that an error names."""


class ChecksumError(EmpgError, RuntimeError):
    """Tensors did not arrive as they were sent."""


def checksum(tensor: Tensor) -> Tensor:
    """64 bits over the tensor's bytes and where they stand: an int64 on its device, which nothing waits for.

    The bytes are words of a grid; of its rows and its columns each sum is mixed with its position, and these are
    added up. So one changed word is always seen, and words that changed places are, as by any hash of 64 bits.
    """
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if flat.storage_offset() % 8:
        flat = flat.clone()  # words must begin at a multiple of their size
    words = flat[: len(flat) // 8 * 8].view(torch.int64)
    in_rows = len(words) // ROW * ROW
    grid = words[:in_rows].view(-1, ROW)
    rest = words.new_zeros(ROW)
    rest.view(torch.uint8)[: len(flat) - 8 * in_rows] = flat[8 * in_rows :]
    sums = torch.cat([grid.sum(0) + rest, grid.sum(1), rest.sum().reshape(1)])
    positions = torch.arange(len(sums), device=sums.device)
    return _mixed(sums + positions * _POSITION).sum()


def _mixed(values: Tensor) -> Tensor:
    """splitmix64's last steps: other 64 bits for each, no two alike."""
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left: torch's own shift repeats the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


class Checksums:
    """Checksums of tensors in the order in which they travel. They stay on the device until they are asked for."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def add(self, tensor: Tensor) -> None:
        self._sums.append(checksum(tensor))

    def as_tensor(self) -> Tensor:
        """int64 [tensors], on their device. Raises ValueError where there are none."""
        if not self._sums:
            raise ValueError("no tensor was sent, so there is no checksum")
        return torch.stack(self._sums)


class Arrival:
    """The receiver's end of a transfer: what comes is summed up on its way to the model."""

    def __init__(self, receiver: str) -> None:
        """`receiver` is what an error calls it."""
        self._receiver = receiver
        self._names: list[str] = []
        self._sums = Checksums()
        self._sent: list[Tensor] = []

    def pairs(self, arriving: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The weights among them."""
        for name, tensor in arriving:
            if name == CHECKSUMS:
                self._sent.append(tensor)
                continue
            self._names.append(name)
            self._sums.add(tensor)
            yield name, tensor

    def check(self) -> None:
        """Hold every sum against the sender's. Waits for the device, once.

        Raises ChecksumError naming what arrived otherwise, and by which sums.
        """
        if len(self._sent) != 1:
            raise ChecksumError(f"{self._receiver} got {len(self._sent)} lists of checksums; a transfer has one")
        sent, arrived = self._sent[0].tolist(), self._sums.as_tensor().tolist()
        if len(sent) != len(arrived):
            raise ChecksumError(f"{self._receiver} got {len(arrived)} tensors and checksums of {len(sent)}")
        wrong = []
        for name, before, after in zip(self._names, sent, arrived, strict=True):
            if before != after:
                wrong.append(f"{name} (sent {_hex(before)}, arrived {_hex(after)})")
        if wrong:
            told = ", ".join(wrong[:_TOLD])
            raise ChecksumError(
                f"{len(wrong)} of {len(arrived)} tensors changed on their way to {self._receiver}: {told}"
            )


def _hex(value: int) -> str:
    return f"{value % (1 << 64):016x}"
