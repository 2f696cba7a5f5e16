"""What is sent: the trainer's tensors in one checked pass, as they go over the wire, and then their checksums."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from megatron_empg.weights.sync.checksums import CHECKSUMS, Checksums

Metadata = list[tuple[str, torch.dtype, tuple[int, ...]]]


class WeightSource(Protocol):
    """Whole tensors under Hugging Face names. Every `iter()` is a fresh pass in `metadata()`'s order."""

    def metadata(self) -> Metadata: ...

    def __iter__(self) -> Iterator[tuple[str, Tensor]]: ...


class Stream:
    """One checked pass over a source that can always be run to its end, so that no trainer rank waits forever."""

    def __init__(self, source: WeightSource, device: torch.device | None = None) -> None:
        """`device`: where tensors are sent from; None leaves them where they are."""
        self._declared = source.metadata()
        self.metadata: Metadata = [*self._declared, (CHECKSUMS, torch.int64, (len(self._declared),))]
        """Of all that goes over the wire."""
        self.bytes = 0
        """Of the weights, without their checksums."""
        self.tensors = 0
        self.ended = threading.Event()
        """Nobody reads it any more."""
        self._device = device
        self._sums = Checksums()
        self._pairs = iter(source)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        try:
            for name, tensor in self._checked():
                sent = self._on_the_wire(tensor)
                self._sums.add(sent)
                self.tensors += 1
                self.bytes += sent.nbytes
                yield name, sent
            yield CHECKSUMS, self._sums.as_tensor()
        finally:
            self.ended.set()

    def _on_the_wire(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self._device or tensor.device).contiguous()

    def _checked(self) -> Iterator[tuple[str, Tensor]]:
        for name, dtype, shape in self._declared:
            pair = next(self._pairs, None)
            if pair is None:
                raise ValueError(f"the weight source ended before {name!r}, which its metadata() declares")
            tensor = pair[1]
            if (pair[0], tensor.dtype, tuple(tensor.shape)) != (name, dtype, tuple(shape)):
                raise ValueError(
                    f"the weight source gave {pair[0]!r} {tensor.dtype} {tuple(tensor.shape)} "
                    f"where its metadata() declares {name!r} {dtype} {tuple(shape)}"
                )
            yield name, tensor
        surplus = next(self._pairs, None)
        if surplus is not None:
            raise ValueError(f"the weight source gave {surplus[0]!r}, which its metadata() does not declare")

    def drain(self) -> None:
        for _ in self._pairs:
            pass
