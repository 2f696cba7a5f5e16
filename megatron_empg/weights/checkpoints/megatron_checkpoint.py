"""Megatron checkpoints (torch_dist, PyTorch's distributed format) read parameter by parameter, in any layout."""

import pickle
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, LoadPlan, Metadata
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from megatron_empg.common.checkpoint_names import MANIFEST
from megatron_empg.common.json_files import JsonFileError, read_object
from megatron_empg.upstream.torch_checkpoint import DescriptionUnpickler
from megatron_empg.weights.checkpoints.errors import CheckpointError
from megatron_empg.weights.checkpoints.megatron_folder import METADATA, WEIGHTS
from megatron_empg.weights.checkpoints.reader import WeightReader
from megatron_empg.weights.mapping.parameter_mapping import ParameterMapping


class MegatronReader(WeightReader):
    """Reads the model's parameters of a Megatron checkpoint; optimizer and random states are left out.

    Entering it checks names, shapes and the sizes of files. Memory: what the caller holds and one chunk of a file.
    """

    def __enter__(self) -> Self:
        self._check_model()
        self._reader = _SafeReader(self.folder / WEIGHTS)
        metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._check_files(metadata)
        self._tensors = self._check_tensors(metadata)
        self._chunks = {}
        for key, tensor in self._tensors.items():
            self._chunks[key] = _by_stack_index(tensor, self._stack_dims[key])
        return self

    def files(self) -> list[Path]:
        return [self.folder / WEIGHTS / name for name in sorted(self._ends)]

    def dtype(self, parameter: ParameterMapping) -> torch.dtype:
        return self._tensors[parameter.key].properties.dtype

    def read(self, parameter: ParameterMapping) -> list[Tensor]:
        origin = (0,) * len(parameter.full_shape)
        return parameter.split(self._region(parameter, origin, parameter.full_shape))

    def read_shard(self, parameter: ParameterMapping, parallel_size: int, rank: int) -> Tensor:
        blocks = parameter.blocks(parallel_size, rank)
        held = [self._region(parameter, block.start, block.shape) for block in blocks]
        if len(held) > 1:
            return torch.cat(held)
        return held[0]

    def _region(self, parameter: ParameterMapping, start: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """A box of the full parameter; rows past the vocabulary are 0, whatever padding the checkpoint has."""
        key, index = parameter.key, parameter.stack_index
        target = torch.zeros(shape, dtype=self.dtype(parameter))
        limits = zip(start, shape, parameter.full_shape, strict=True)
        stop = tuple(min(first + size, limit) for first, size, limit in limits)
        after = tuple(number + 1 for number in index)
        items = []
        for chunk in self._chunks[key][index]:
            item = _overlap(key, chunk, index + start, after + stop)
            if item is not None:
                items.append(item)
        into = _Into(target.view((1,) * len(index) + shape))
        try:
            self._reader.read_data(LoadPlan(items), into).wait()
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{self.folder / WEIGHTS}: {key} cannot be read: {error}") from error
        return target

    def _check_model(self) -> None:
        manifest = self.folder / MANIFEST
        try:
            recorded = None
            if manifest.exists():
                recorded = read_object(manifest).get("model")
        except JsonFileError as error:
            raise CheckpointError(str(error)) from error
        expected = asdict(self.config)
        different = sorted(key for key, value in (recorded or {}).items() if expected.get(key) != value)
        if different:
            raise CheckpointError(
                f"{self.folder} is of another model: {different} differ from the configuration's"
            )

    def _check_files(self, metadata: Metadata) -> None:
        self._ends: dict[str, int] = defaultdict(int)
        for info in metadata.storage_data.values():
            self._ends[info.relative_path] = max(self._ends[info.relative_path], info.offset + info.length)
        for name, end in self._ends.items():
            path = self.folder / WEIGHTS / name
            if not path.exists():
                raise CheckpointError(f"{path} is missing; {self.folder / WEIGHTS / METADATA} names it")
            if path.stat().st_size < end:
                raise CheckpointError(f"{path} is cut short: {path.stat().st_size} bytes, expected {end}")

    def _check_tensors(self, metadata: Metadata) -> dict[str, TensorStorageMetadata]:
        """The model's tensors by name, after comparing names and shapes with the configuration's."""
        present = {
            key: tensor
            for key, tensor in metadata.state_dict_metadata.items()
            if isinstance(tensor, TensorStorageMetadata)
            and key.startswith(("decoder.", "embedding.", "output_layer."))
        }
        expected: dict[str, tuple[int, ...]] = {}
        self._stack_dims: dict[str, int] = {}
        padded = set()
        for parameter in self.table:
            expected[parameter.key] = (*parameter.stack_shape, *parameter.full_shape)
            self._stack_dims[parameter.key] = len(parameter.stack_shape)
            if parameter.padded:
                padded.add(parameter.key)
        missing, surplus = sorted(set(expected) - set(present)), sorted(set(present) - set(expected))
        if missing or surplus:
            raise CheckpointError(
                f"{self.folder}: tensors do not fit config.json; missing: {missing[:5] or 'none'}, "
                f"surplus: {surplus[:5] or 'none'}"
            )
        for key, shape in expected.items():
            found = tuple(present[key].size)
            has_padding = key in padded and found[0] > shape[0]
            if found[1:] != shape[1:] or (found[0] != shape[0] and not has_padding):
                raise CheckpointError(f"{self.folder}: {key} has shape {list(found)}, expected {list(shape)}")
            if sum(prod(chunk.sizes) for chunk in present[key].chunks) < prod(found):
                raise CheckpointError(
                    f"{self.folder}: {key} is incomplete: a rank's part is not in the checkpoint"
                )
        return present


def _by_stack_index(tensor: TensorStorageMetadata, dims: int) -> dict[tuple[int, ...], list[ChunkStorageMetadata]]:
    """The tensor's chunks by layer (and expert); Megatron stores each layer's apart."""
    found: dict[tuple[int, ...], list[ChunkStorageMetadata]] = defaultdict(list)
    for chunk in tensor.chunks:
        found[tuple(chunk.offsets[:dims])].append(chunk)
    return found


def _overlap(
    key: str, chunk: ChunkStorageMetadata, start: tuple[int, ...], stop: tuple[int, ...]
) -> ReadItem | None:
    """What to read of a stored chunk to fill the box from start to stop."""
    # The overlap is from `low` to `high`, counted in the whole tensor as box and chunk are.
    chunk_stop = [offset + size for offset, size in zip(chunk.offsets, chunk.sizes, strict=True)]
    low = [max(both) for both in zip(start, chunk.offsets, strict=True)]
    high = [min(both) for both in zip(stop, chunk_stop, strict=True)]
    lengths = _minus(high, low)
    if any(length <= 0 for length in lengths):
        return None
    return ReadItem(
        type=LoadItemType.TENSOR,
        dest_index=MetadataIndex(key),
        dest_offsets=_minus(low, start),
        storage_index=MetadataIndex(key, chunk.offsets),
        storage_offsets=_minus(low, chunk.offsets),
        lengths=lengths,
    )


def _minus(ends: Sequence[int], starts: Sequence[int]) -> torch.Size:
    """The difference in each dimension."""
    return torch.Size(end - start for end, start in zip(ends, starts, strict=True))


class _Into(DefaultLoadPlanner):
    """Reads into one tensor."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        box = tuple(slice(a, a + n) for a, n in zip(read_item.dest_offsets, read_item.lengths, strict=True))
        return self.target[box]

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None: ...


class _SafeReader(FileSystemReader):
    """PyTorch's reader, which would unpickle anything: here only what describes a checkpoint."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        path = Path(self.path) / METADATA
        try:
            with path.open("rb") as file:
                metadata: Metadata = DescriptionUnpickler(file).load()
        except (OSError, EOFError, pickle.UnpicklingError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{path} does not describe a Megatron checkpoint: {error}") from error
        return metadata
