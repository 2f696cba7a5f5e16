"""Writes a Megatron checkpoint of weights file by file, each tensor read, cut and let go in its turn."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, SavePlan
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from megatron_empg.upstream.torch_checkpoint import storage_info
from megatron_empg.weights.checkpoints.dtypes import cast
from megatron_empg.weights.checkpoints.hugging_face import group_by_size
from megatron_empg.weights.checkpoints.reader import WeightReader
from megatron_empg.weights.mapping.parameter_mapping import Block, ParameterMapping

FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch",
          "common_backend_version": 1}  # fmt: skip


class MegatronWriter(DefaultSavePlanner):
    """Plans one rank's parameters into files of at most ``shard_bytes``, rank by rank, and writes any of them.

    As PyTorch's planner it hands the tensors over one by one; a file's tensors are held until it is written.
    """

    def __init__(
        self,
        folder: Path,
        source: WeightReader,
        *,
        tensor_parallel: int,
        pipeline_parallel: int,
        dtype: torch.dtype | None,
        shard_bytes: int,
        written: Callable[[int], None],
    ) -> None:
        super().__init__()
        self.folder, self.source, self.dtype, self.written = Path(folder), source, dtype, written
        self.tensor_parallel, self.pipeline_parallel = tensor_parallel, pipeline_parallel
        self._origin: dict[MetadataIndex, tuple[ParameterMapping, int, Block]] = {}
        self._last: tuple[tuple[str, int], Tensor] | None = None
        self.total_bytes = 0
        plans: list[SavePlan] = []
        for stage, rank in itertools.product(range(pipeline_parallel), range(tensor_parallel)):
            sized = [(item, _nbytes(item)) for item in self._items(stage, rank)]
            self.total_bytes += sum(size for _, size in sized)
            plans += map(SavePlan, group_by_size(sized, shard_bytes))
        plans, self._metadata = create_default_global_save_plan(plans)
        self._writer = FileSystemWriter(self.folder, per_thread_copy_ahead=0)
        self.plans = self._writer.prepare_global_plan(plans)

    def write(self, number: int) -> list[Any]:
        """Write file ``number``; returns what `finish` must know of it, in JSON's types."""
        results = self._writer.write_data(self.plans[number], self).wait()
        return [
            [r.index.fqn, list(r.index.offset or ()), r.storage_data.relative_path, r.storage_data.offset,
             r.storage_data.length]
            for r in results
        ]  # fmt: skip

    def nbytes(self, number: int) -> int:
        """Bytes of the tensors of file ``number``."""
        return sum(_nbytes(item) for item in self.plans[number].items)

    def finish(self, records: list[list[Any]]) -> None:
        """Write the descriptions that make the files a checkpoint of Megatron's dist_checkpointing."""
        results = [
            WriteResult(MetadataIndex(key, torch.Size(start)), length, storage_info(file, offset, length))
            for record in records
            for key, start, file, offset, length in record
        ]
        torch.save({}, self.folder / "common.pt")
        (self.folder / "metadata.json").write_text(json.dumps(FORMAT), encoding="utf-8")
        self._writer.finish(self._metadata, [results])

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        parameter, rank, block = self._origin[write_item.index]
        if self._last is None or self._last[0] != (parameter.megatron, rank):
            shard = self.source.read_shard(parameter, self.tensor_parallel, rank)
            self._last = ((parameter.megatron, rank), cast(", ".join(parameter.hf), shard, self.dtype))
        self.written(_nbytes(write_item))
        assert write_item.tensor_data is not None
        return self._last[1][slice(*block.rows)].reshape(write_item.tensor_data.chunk.sizes)

    def _items(self, stage: int, rank: int) -> Iterator[WriteItem]:
        """What this rank writes: of what all tensor-parallel ranks hold, one writes it."""
        for parameter in self.source.table:
            held = parameter.pipeline_stage(self.pipeline_parallel) == stage
            if held and parameter.is_written_by(rank, self.tensor_parallel):
                for block in parameter.blocks(self.tensor_parallel, rank):
                    yield self._item(parameter, rank, block)

    def _item(self, parameter: ParameterMapping, rank: int, block: Block) -> WriteItem:
        dtype = self.dtype or self.source.dtype(parameter)
        start = torch.Size((*parameter.stack_index, *block.start))
        index = MetadataIndex(parameter.key, start)
        self._origin[index] = (parameter, rank, block)
        shape = (*parameter.stack_shape, *parameter.padded_shape(self.tensor_parallel))
        sizes = torch.Size((*(1 for _ in parameter.stack_index), *block.shape))
        data = TensorWriteData(ChunkStorageMetadata(start, sizes), TensorProperties(dtype), torch.Size(shape))
        return WriteItem(index, WriteItemType.SHARD, tensor_data=data)


def _nbytes(item: WriteItem) -> int:
    assert item.tensor_data is not None
    return item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize
