"""What is sent: the trainer's tensors in one checked pass, as they go over the wire, and then their checksums."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from megatron_empg.weights.sync.checksums import CHECKSUMS, Checksums

Metadata = list[tuple[str, torch.dtype, tuple[int, ...]]]


class WeightSource(Protocol):
    """Whole tensors under Hugging Face names. Every `iter()` is a fresh pass in `metadata()`'s order."""

    def metadata(self) -> Metadata: ...

    def __iter__(self) -> Iterator[tuple[str, Tensor]]: ...


@dataclass(frozen=True)
class AssignedTensor:
    """A tensor, and which of the senders sends it. The first is trainer rank 0."""

    sender: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class SenderParts(Protocol):
    """A source as the senders among the trainer's ranks have it."""

    @property
    def sender(self) -> int | None:
        """Which of the senders this rank is; None for a rank that sends nothing."""
        ...

    def stages(self) -> list[list[AssignedTensor]]:
        """Every tensor, by pipeline stage and in the order in which its ranks make them; the same on all ranks."""
        ...

    def own_part(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that this rank sends, in the order of its stage. Collective over the ranks of a stage."""
        ...


@runtime_checkable
class SharedSource(WeightSource, SenderParts, Protocol):
    """A source of which several ranks have parts."""

    def take_part(self) -> None:
        """Make every tensor with rank 0, which iterates, and keep none. Collective."""
        ...


class WholeSource:
    """A source as the part of rank 0 alone, which the other ranks help to make."""

    def __init__(self, source: WeightSource, rank: int) -> None:
        self._source = source
        self._sends = rank == 0

    @property
    def sender(self) -> int | None:
        return 0 if self._sends else None

    def stages(self) -> list[list[AssignedTensor]]:
        return [[AssignedTensor(0, name, dtype, shape) for name, dtype, shape in self._source.metadata()]]

    def own_part(self) -> Iterator[tuple[str, Tensor]]:
        if self._sends:
            yield from self._source
        else:
            cast(SharedSource, self._source).take_part()


def wire_dtype(given: torch.dtype, served: Collection[torch.dtype]) -> torch.dtype:
    """The dtype a tensor is sent in: the engines' own, where all have the same and it takes fewer bytes.

    An engine would round the values to it in any case, and in the same way.
    """
    if len(served) != 1:
        return given
    (only,) = served
    return only if only.itemsize < given.itemsize else given


def on_the_wire(declared: Metadata, served: Collection[torch.dtype] = ()) -> Metadata:
    """What is sent for these tensors: they, and their checksums."""
    tensors = [(name, wire_dtype(dtype, served), shape) for name, dtype, shape in declared]
    return [*tensors, (CHECKSUMS, torch.int64, (len(declared),))]


class CheckedStream:
    """One checked pass over a source that can always be run to its end, so that no trainer rank waits forever."""

    def __init__(
        self,
        declared: Metadata,
        pairs: Iterable[tuple[str, Tensor]],
        *,
        device: torch.device | None = None,
        served: Collection[torch.dtype] = (),
    ) -> None:
        """`pairs` are what `declared` says. `device`: where tensors are sent from; None leaves them where they
        are. `served`: the dtypes of the engines' weights, for `wire_dtype`."""
        self._declared, self._served = declared, served
        self.metadata = on_the_wire(declared, served)
        """Of all that goes over the wire."""
        self.bytes = 0
        """Of the weights, without their checksums."""
        self.tensors = 0
        self.ended = threading.Event()
        """Nobody reads it any more."""
        self._device = device
        self._sums = Checksums()
        self._pairs = iter(pairs)
        self.error: BaseException | None = None
        """What the source raised."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        try:
            for name, tensor in self._noting_errors():
                sent = self._on_the_wire(tensor)
                self._sums.add(sent)
                self.tensors += 1
                self.bytes += sent.nbytes
                yield name, sent
            yield CHECKSUMS, self._sums.as_tensor()
        finally:
            self.ended.set()

    def _noting_errors(self) -> Iterator[tuple[str, Tensor]]:
        try:
            yield from self._checked()
        except Exception as error:
            self.error = error
            raise

    def _on_the_wire(self, tensor: Tensor) -> Tensor:
        dtype = wire_dtype(tensor.dtype, self._served)
        return tensor.detach().to(device=self._device or tensor.device, dtype=dtype).contiguous()

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
