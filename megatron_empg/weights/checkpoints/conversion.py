"""Checkpoint conversion between Hugging Face and Megatron folders, in memory of about one file."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_empg.weights.checkpoints.dtypes import cast
from megatron_empg.weights.checkpoints.errors import CheckpointError
from megatron_empg.weights.checkpoints.hugging_face import (
    SHARD_BYTES,
    commonest,
    copy_configuration,
    group_by_size,
    owned_copy,
    shard_names,
    write_index,
    write_shard,
)
from megatron_empg.weights.checkpoints.megatron_folder import WEIGHTS
from megatron_empg.weights.checkpoints.megatron_writer import MegatronWriter
from megatron_empg.weights.checkpoints.open_weights import open_weights
from megatron_empg.weights.checkpoints.reader import WeightReader
from megatron_empg.weights.checkpoints.staging import Staging
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameter_mapping import ParameterMapping

_log = logging.getLogger(__name__)
ReportProgress = Callable[[int, int], None]
"""Called with (bytes of tensors done, bytes in all)."""


def to_megatron(
    source: Path,
    destination: Path,
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    dtype: torch.dtype | None = None,
    like: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: ReportProgress | None = None,
) -> None:
    """Write ``destination`` with ``megatron/`` (torch_dist) beside the configuration and tokenizer.

    The checkpoint loads in any layout; the parallel sizes choose whose part lies in which file. ``source`` is a
    Hugging Face folder or a Megatron checkpoint; ``like`` has the configuration where the source has none.
    An interrupted conversion goes on when it is repeated. Raises CheckpointError and ModelConfigError.
    """
    config = _config(source, like)
    _check_layout(config, tensor_parallel, pipeline_parallel)
    options = {"to": "megatron", "tensor": tensor_parallel, "pipeline": pipeline_parallel}
    with (
        open_weights(source, config) as reader,
        _stage(reader, destination, dtype, shard_bytes, options) as staging,
    ):
        folder = staging.folder / WEIGHTS
        folder.mkdir(exist_ok=True)
        report = _Bytes(progress)
        writer = MegatronWriter(
            folder, reader, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel, dtype=dtype,
            shard_bytes=shard_bytes, written=report.add,
        )  # fmt: skip
        report.total = writer.total_bytes
        for number in range(len(writer.plans)):
            if str(number) in staging.done:
                report.add(writer.nbytes(number))
            else:
                written = writer.write(number)
                staging.done[str(number)] = written
                staging.record(str(number), written)
        writer.finish([staging.done[str(number)] for number in range(len(writer.plans))])
        copy_configuration(like or source, staging.folder, _commonest_dtype(reader, dtype))


def to_hugging_face(
    source: Path,
    destination: Path,
    *,
    dtype: torch.dtype | None = None,
    like: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: ReportProgress | None = None,
) -> None:
    """Write ``destination`` as a Hugging Face folder, in safetensors files of at most ``shard_bytes``.

    ``source`` is a Megatron checkpoint, of a training step or of weights alone, or a Hugging Face folder; ``like``
    has the configuration and tokenizer where the source has none. Otherwise as `to_megatron`.
    """
    config = _config(source, like)
    with (
        open_weights(source, config) as reader,
        _stage(reader, destination, dtype, shard_bytes, {"to": "hugging_face"}) as staging,
    ):
        files = _files_to_write(reader, dtype, shard_bytes)
        report = _Bytes(progress, sum(file.nbytes for file in files))
        for file in files:
            if file.name not in staging.done:
                write_shard(staging.folder / file.name, _read_tensors(reader, file.parameters, dtype))
                staging.record(file.name, file.nbytes)
            report.add(file.nbytes)
        copy_configuration(like or source, staging.folder, _commonest_dtype(reader, dtype))
        write_index(staging.folder, [(file.tensor_names(), file.nbytes) for file in files])


@dataclass(frozen=True)
class _SafetensorsFile:
    """A file to write, the parameters whose tensors it gets, and the bytes of those."""

    name: str
    parameters: list[ParameterMapping]
    nbytes: int

    def tensor_names(self) -> list[str]:
        return [tensor for parameter in self.parameters for tensor in parameter.hf]


def _files_to_write(reader: WeightReader, dtype: torch.dtype | None, shard_bytes: int) -> list[_SafetensorsFile]:
    """The model's parameters in order, in files of at most ``shard_bytes``."""

    def nbytes(parameter: ParameterMapping) -> int:
        return _nbytes(parameter, dtype or reader.dtype(parameter))

    sized = [(parameter, nbytes(parameter)) for parameter in reader.table]
    groups = list(group_by_size(sized, shard_bytes))
    files = []
    for name, group in zip(shard_names(len(groups)), groups, strict=True):
        total = sum(nbytes(parameter) for parameter in group)
        files.append(_SafetensorsFile(name, group, total))
    return files


def _read_tensors(
    reader: WeightReader, parameters: list[ParameterMapping], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """A file's tensors by name, as they are written."""
    tensors = {}
    for parameter in parameters:
        for name, tensor in zip(parameter.hf, reader.read(parameter), strict=True):
            tensors[name] = owned_copy(cast(name, tensor, dtype))
    return tensors


def verify(
    source: Path, converted: Path, *, like: Path | None = None, progress: ReportProgress | None = None
) -> int:
    """Compare every tensor bit for bit, after the conversion's change of dtype; returns how many there are.

    Raises CheckpointError naming the first that differs.
    """
    config = _config(source, like)
    compared = 0
    with open_weights(source, config) as ours, open_weights(converted, config) as theirs:
        report = _Bytes(progress, sum(_nbytes(parameter, ours.dtype(parameter)) for parameter in ours.table))
        for parameter in ours.table:
            pairs = zip(parameter.hf, ours.read(parameter), theirs.read(parameter), strict=True)
            for name, before, after in pairs:
                expected = cast(name, before, after.dtype)
                if not torch.equal(expected.view(torch.uint8), after.contiguous().view(torch.uint8)):
                    raise CheckpointError(
                        f"{converted}: {name} differs from {source}'s in "
                        f"{int((expected != after).sum())} of {after.numel()} values"
                    )
                compared += 1
            report.add(_nbytes(parameter, ours.dtype(parameter)))
    return compared


class _Bytes:
    """Adds up what is done for a progress display."""

    def __init__(self, progress: ReportProgress | None, total: int = 0) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, size: int) -> None:
        self.done += size
        if self.progress:
            self.progress(self.done, self.total)


def _stage(
    reader: WeightReader, destination: Path, dtype: torch.dtype | None, shard_bytes: int, options: dict[str, Any]
) -> Staging:
    """A repetition goes on only where source, options and the size of files are the same."""
    for note in reader.notes:
        _log.warning(note)
    source = {str(path.resolve()): [path.stat().st_size, path.stat().st_mtime_ns] for path in reader.files()}
    return Staging(destination, {**options, "dtype": str(dtype), "shard_bytes": shard_bytes, "source": source})


def _config(source: Path, like: Path | None) -> ModelConfig:
    if like is None and not (Path(source) / "config.json").exists():
        raise CheckpointError(f"{source} has no config.json; name a folder with the model's by --like")
    return ModelConfig.from_folder(like or source)


def _check_layout(config: ModelConfig, tensor_parallel: int, pipeline_parallel: int) -> None:
    faults = config.layout_faults(
        tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel, max_sequence_length=1
    )
    if faults:
        raise CheckpointError("; ".join(fault.told(fault.size) for fault in faults))


def _commonest_dtype(reader: WeightReader, dtype: torch.dtype | None) -> torch.dtype:
    bytes_of: Counter[torch.dtype] = Counter()
    for parameter in reader.table:
        stored = reader.dtype(parameter)
        bytes_of[stored] += _nbytes(parameter, stored)
    return dtype or commonest(bytes_of)


def _nbytes(parameter: ParameterMapping, dtype: torch.dtype) -> int:
    """Bytes of the parameter's Hugging Face tensors in this element type."""
    elements = sum(torch.Size(shape).numel() for shape in parameter.shapes)
    return elements * dtype.itemsize
