"""torch.distributed.checkpoint: the records in a checkpoint's description, written and read."""

from __future__ import annotations

import pickle
from typing import Any

from megatron_empg.upstream.record import private_api

_TESTED = ("2.13.0",)


@private_api(
    "torch",
    symptom="(no other way to describe a file whose tensors were written in an earlier process)",
    trigger="a conversion to Megatron's format, whose files are written one by one and may be resumed",
    why="a write result holds where its tensor lies as a `_StorageInfo`, which has no public name",
    versions=_TESTED,
    can_go_when="the class is public",
)
def storage_info(file: str, offset: int, length: int) -> Any:
    """Where a tensor lies: bytes ``offset`` to ``offset + length`` of ``file``."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    return _StorageInfo(file, offset, length)


@private_api(
    "torch",
    symptom="a checkpoint from elsewhere runs whatever code its .metadata file names",
    trigger="reading a Megatron checkpoint",
    why="FileSystemReader.read_metadata unpickles without asking; classes of a description have private names",
    versions=_TESTED,
    can_go_when="FileSystemReader reads a description as torch.load(weights_only=True) reads weights",
)
class DescriptionUnpickler(pickle.Unpickler):
    """Unpickles what describes a checkpoint and nothing else. Raises UnpicklingError naming the stranger."""

    CLASSES = (
        ("torch.distributed.checkpoint.metadata", "BytesStorageMetadata ChunkStorageMetadata Metadata"),
        ("torch.distributed.checkpoint.metadata", "MetadataIndex StorageMeta TensorProperties"),
        ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata _MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.planner", "SavePlan TensorWriteData WriteItem WriteItemType"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo _StoragePrefix"),
        ("torch", "Size float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool"),
        ("torch.serialization", "_get_layout"),
        ("pathlib", "PosixPath"),
        ("collections", "OrderedDict defaultdict"),
    )
    ALLOWED = frozenset((module, name) for module, names in CLASSES for name in names.split())

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)
