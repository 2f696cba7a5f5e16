"""The kinds of mapping that the families' tables name: each class is one way of merging and sharding.

To add one, write a class and name it in a family's table; nothing else asks which kind a parameter is of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_empg.common.lazy_torch import torch
from megatron_empg.weights.mapping.parameter_mapping import Block, ParameterMapping, ReadTensor, TensorSlice

if TYPE_CHECKING:
    from torch import Tensor


class WholeOnRank(ParameterMapping):
    """Tensor parallelism leaves the parameter whole."""

    divided = False

    def blocks(self, parallel_size: int, rank: int) -> tuple[Block, ...]:
        shape = self.full_shape
        origin = (0,) * len(shape)
        return (Block(origin, shape, (0, shape[0])),)

    def unshard(self, shards: Sequence[Tensor]) -> Tensor:
        return shards[0]

    def read_shard(self, parallel_size: int, rank: int, read: ReadTensor) -> Tensor:
        return self.merge([read(name, None) for name in self.hf])


class Replicated(WholeOnRank):
    """One tensor that every tensor-parallel rank holds a copy of: norms, routers."""

    def is_written_by(self, rank: int, parallel_size: int) -> bool:
        return rank == 0


class Column(ParameterMapping):
    """Output features, the rows, are shared out over the ranks, as Megatron's ColumnParallelLinear does."""

    def blocks(self, parallel_size: int, rank: int) -> tuple[Block, ...]:
        rows, *rest = self.padded_shape(parallel_size)
        length = rows // parallel_size
        start = (rank * length, *(0 for _ in rest))
        return (Block(start, (length, *rest), (0, length)),)

    def unshard(self, shards: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(shards))

    def read_shard(self, parallel_size: int, rank: int, read: ReadTensor) -> Tensor:
        """The rank's rows of each tensor are the tensors of its shard."""
        parts = []
        for name, shape in zip(self.hf, self.shapes, strict=True):
            length = shape[0] // parallel_size
            parts.append(read(name, TensorSlice(0, rank * length, (rank + 1) * length)))
        return self.merge(parts)


class PaddedVocabulary(Column):
    """The embedding or the LM head: its rows are padded with zeros, as many as the number of ranks asks for."""

    padded = True

    def padded_shape(self, parallel_size: int) -> tuple[int, ...]:
        return (self.sizes.padded_vocabulary(parallel_size), *self.full_shape[1:])

    def split(self, full: Tensor) -> list[Tensor]:
        return [full[: self.sizes.vocabulary]]

    def shard(self, full: Tensor, parallel_size: int, rank: int) -> Tensor:
        rows = self.sizes.padded_vocabulary(parallel_size)
        return super().shard(_with_rows(full, rows), parallel_size, rank)

    def read_shard(self, parallel_size: int, rank: int, read: ReadTensor) -> Tensor:
        length = self.sizes.padded_vocabulary(parallel_size) // parallel_size
        start = min(rank * length, self.sizes.vocabulary)
        stop = min((rank + 1) * length, self.sizes.vocabulary)
        (name,) = self.hf
        return _with_rows(read(name, TensorSlice(0, start, stop)), length)

    def initial_deviation(self, shape: tuple[int, ...], embeddings: float) -> float:
        return embeddings


class Row(ParameterMapping):
    """Input features, the columns, are shared out over the ranks, as Megatron's RowParallelLinear does."""

    def blocks(self, parallel_size: int, rank: int) -> tuple[Block, ...]:
        rows, columns = self.full_shape
        width = columns // parallel_size
        return (Block((0, rank * width), (rows, width), (0, rows)),)

    def unshard(self, shards: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(shards), dim=1)

    def read_shard(self, parallel_size: int, rank: int, read: ReadTensor) -> Tensor:
        (name,) = self.hf
        width = self.full_shape[1] // parallel_size
        return read(name, TensorSlice(1, rank * width, (rank + 1) * width))

    def initial_deviation(self, shape: tuple[int, ...], embeddings: float) -> float:
        """Halved: what it computes is added to the residual stream."""
        return super().initial_deviation(shape, embeddings) * 0.5


class Qkv(Column):
    """Queries, keys and values, interleaved so that each key-value head follows the query heads that use it.

    So a rank's rows are heads of its own. Weights and biases are alike.
    """

    def merge(self, tensors: Sequence[Tensor]) -> Tensor:
        rest = tensors[0].shape[1:]
        groups = len(tensors[1]) // self.sizes.head
        grouped = [tensor.reshape(groups, -1, *rest) for tensor in tensors]
        return torch.cat(grouped, dim=1).reshape(-1, *rest)

    def split(self, full: Tensor) -> list[Tensor]:
        rest = full.shape[1:]
        head = self.sizes.head
        queries = self.sizes.q // self.sizes.kv * head
        widths = [queries, head, head]
        grouped = full.reshape(self.sizes.kv_heads, sum(widths), *rest)
        return [part.reshape(-1, *rest) for part in grouped.split(widths, dim=1)]

    def read_shard(self, parallel_size: int, rank: int, read: ReadTensor) -> Tensor:
        if self.sizes.kv_heads % parallel_size == 0:
            return super().read_shard(parallel_size, rank, read)
        # Ranks share a key-value head: a rank's rows may begin within a group, so all is read and then cut.
        return ParameterMapping.read_shard(self, parallel_size, rank, read)


class GateUp(Column):
    """Gate and up projections: one after the other in full, and one after the other in each rank's shard."""

    def merge(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors))

    def split(self, full: Tensor) -> list[Tensor]:
        return list(full.chunk(2))

    def blocks(self, parallel_size: int, rank: int) -> tuple[Block, ...]:
        rows, *rest = self.full_shape
        length = rows // (2 * parallel_size)
        found = []
        for half in range(2):
            start = (half * parallel_size + rank) * length
            in_shard = (half * length, (half + 1) * length)
            whole = [0] * len(rest)  # the other dimensions begin at their first index
            found.append(Block((start, *whole), (length, *rest), in_shard))
        return tuple(found)

    def unshard(self, shards: Sequence[Tensor]) -> Tensor:
        halves = [shard.chunk(2) for shard in shards]
        gates = [gate for gate, _ in halves]
        ups = [up for _, up in halves]
        return torch.cat(gates + ups)


class OfExpert(WholeOnRank):
    """A parameter of one expert, which lies whole on its expert-parallel rank."""

    def is_written_by(self, rank: int, parallel_size: int) -> bool:
        """Every tensor-parallel rank could; they share the experts out."""
        return self.expert_owner(parallel_size) == rank


class ExpertGateUp(OfExpert, GateUp):
    """An expert's gate and up projections: merged as the MLP's, never sharded."""


class ExpertRow(OfExpert, Row):
    """An expert's projection back to the residual stream: initialised as the MLP's, never sharded."""


def _with_rows(tensor: Tensor, rows: int) -> Tensor:
    """The tensor with rows of zeros behind, so many in all."""
    zeros = tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])
    return torch.cat([tensor, zeros])
