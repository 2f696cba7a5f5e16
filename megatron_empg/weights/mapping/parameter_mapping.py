"""What every mapping between Hugging Face's and Megatron-core's tensors can do; `mappings` has the kinds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megatron_empg.common.lazy_torch import torch
from megatron_empg.weights.mapping.model_sizes import ModelSizes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TensorSlice:
    """A stretch of one dimension of a tensor: from ``start`` up to, and without, ``stop``."""

    dim: int
    start: int
    stop: int


ReadTensor = Callable[[str, TensorSlice | None], "Tensor"]
"""``read(name, part)`` gives a slice of a Hugging Face tensor, or all of it for None."""


@dataclass(frozen=True)
class Block:
    """A block of the full parameter, held by a rank as some rows of its shard.

    Example: of gate and up, (8, 4) together, the second of two ranks holds of the gate
    ``Block((2, 0), (2, 4), (0, 2))`` and of the up projection ``Block((6, 0), (2, 4), (2, 4))``.
    """

    start: tuple[int, ...]
    """Where it begins in the full parameter."""
    shape: tuple[int, ...]
    rows: tuple[int, int]
    """The rows of the rank's shard, first and end."""


@dataclass(frozen=True)
class ParameterMapping(ABC):
    """One parameter of the Megatron model and the Hugging Face tensors that it is made of.

    A parameter has three forms: Hugging Face's *tensors*; Megatron's *full* tensor, merged of them; a
    tensor-parallel rank's *shard* of the full one. A subclass is one way of merging and sharding.

    Example: the biases of queries, keys and values in layer 0 are
    ``Qkv(megatron="decoder.layers.0.self_attention.linear_qkv.bias", hf=("model.layers.0.self_attn.q_proj.bias",
    …k…, …v…), shapes=((64,), (32,), (32,)), …, layer=0)``.
    """

    megatron: str
    """Its name in the model; layers and experts are numbered over the whole model."""
    hf: tuple[str, ...]
    """Names of the Hugging Face tensors."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the Hugging Face tensors."""
    key: str
    """The tensor of a Megatron checkpoint that holds it, stacked over the layers (and experts)."""
    sizes: ModelSizes
    layer: int | None = None
    expert: int | None = None

    divided: ClassVar[bool] = True
    """Whether tensor-parallel ranks share the parameter out; else each holds all of it."""
    padded: ClassVar[bool] = False
    """Whether Megatron's full tensor has rows that Hugging Face's tensors have not."""

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Shape of the merged tensor, before padding."""
        rows = sum(shape[0] for shape in self.shapes)
        return (rows, *self.shapes[0][1:])

    def padded_shape(self, parallel_size: int) -> tuple[int, ...]:
        """Shape of the full tensor as so many tensor-parallel ranks share it out."""
        return self.full_shape

    def shard_numel(self, parallel_size: int) -> int:
        """Elements of a tensor-parallel rank's shard."""
        full = math.prod(self.padded_shape(parallel_size))
        if self.divided:
            return full // parallel_size
        return full

    def merge(self, tensors: Sequence[Tensor]) -> Tensor:
        """Hugging Face's tensors as Megatron's full tensor; of slices of them, a part of it."""
        (tensor,) = tensors
        return tensor

    def split(self, full: Tensor) -> list[Tensor]:
        """The full tensor as Hugging Face's tensors, without padding; the inverse of `merge`."""
        return [full]

    @abstractmethod
    def blocks(self, parallel_size: int, rank: int) -> tuple[Block, ...]:
        """What a tensor-parallel rank holds of the padded full tensor, in the order of its shard's rows."""

    def shard(self, full: Tensor, parallel_size: int, rank: int) -> Tensor:
        """A tensor-parallel rank's shard of the full tensor, which may lack padding."""
        held = []
        for block in self.blocks(parallel_size, rank):
            stops = [start + size for start, size in zip(block.start, block.shape, strict=True)]
            box = tuple(slice(start, stop) for start, stop in zip(block.start, stops, strict=True))
            held.append(full[box])
        if len(held) > 1:
            return torch.cat(held)
        return held[0]

    @abstractmethod
    def unshard(self, shards: Sequence[Tensor]) -> Tensor:
        """The padded full tensor from every tensor-parallel rank's shard; the inverse of `shard`."""

    def read_shard(self, parallel_size: int, rank: int, read: ReadTensor) -> Tensor:
        """`shard` of `merge`; a kind that can do with less than all of the tensors reads less."""
        tensors = [read(name, None) for name in self.hf]
        return self.shard(self.merge(tensors), parallel_size, rank)

    def is_written_by(self, rank: int, parallel_size: int) -> bool:
        """Whether a tensor-parallel rank writes what it holds: of copies, one rank writes one."""
        return True

    def initial_deviation(self, shape: tuple[int, ...], embeddings: float) -> float:
        """Standard deviation of a matrix of this shape at random: 1/sqrt(inputs), or ``embeddings``, for those."""
        return float(shape[1] ** -0.5)

    def pipeline_stage(self, stages: int, chunks: int = 1) -> int:
        """The pipeline stage that holds the parameter; tied embeddings count as the first stage's.

        With ``chunks`` model chunks per stage, runs of layers go round the stages.
        """
        if self.layer is not None:
            layers_of_a_chunk = self.sizes.layers // (stages * chunks)
            return self.layer // layers_of_a_chunk % stages
        if self.megatron.startswith("embedding."):
            return 0
        return stages - 1

    def expert_owner(self, ranks: int) -> int:
        """Which of so many ranks, among which a layer's experts are shared out in runs, has this one's."""
        assert self.expert is not None, self.megatron
        return self.expert * ranks // self.sizes.experts

    @property
    def stack_index(self) -> tuple[int, ...]:
        """Where the checkpoint's stacked tensor holds it: indices into the leading dimensions."""
        return tuple(number for number in (self.layer, self.expert) if number is not None)

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """Sizes of the stacked tensor's leading dimensions."""
        if self.expert is not None:
            return (self.sizes.layers, self.sizes.experts)
        if self.layer is None:
            return ()
        return (self.sizes.layers,)
