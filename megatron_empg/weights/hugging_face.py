"""Hugging Face folders: safetensors read by name with every fault named, and written whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from megatron_empg.weights.dtypes import DTYPES
from megatron_empg.weights.errors import CheckpointError
from megatron_empg.weights.mapping import Part, Row, piece
from megatron_empg.weights.model_config import ModelConfig

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5 * 2**30
T = TypeVar("T")


class CheckpointReader:
    """Reads the tensors of a Hugging Face folder row by row. Opening checks names, shapes and types of them all.

    Files are mapped only while a tensor is read: memory is what the caller holds.
    """

    def __init__(self, folder: Path, table: list[Row], config: ModelConfig) -> None:
        self.folder = Path(folder)
        self.table, self.config = table, config
        self._where: dict[str, Path] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    def __enter__(self) -> "CheckpointReader":
        self._where = _locate(self.folder)
        self._check_names()
        shapes: dict[str, tuple[int, ...]] = {}
        for path in self.files():
            shapes.update(self._inspect(path))
        for row in self.table:
            for name, expected in zip(row.hf, row.shapes, strict=True):
                if shapes[name] != expected:
                    raise CheckpointError(
                        f"{self.folder}: {name} has shape {list(shapes[name])}, expected {list(expected)}"
                    )
            if len({self._dtypes[name] for name in row.hf}) > 1:
                raise CheckpointError(f"{self.folder}: {', '.join(row.hf)} make one parameter and differ in dtype")
        return self

    def __exit__(self, *_: object) -> None: ...

    def files(self) -> list[Path]:
        """The files with the tensors."""
        return sorted(set(self._where.values()))

    def dtype(self, row: Row) -> torch.dtype:
        """Of the row's tensors, as stored."""
        return self._dtypes[row.hf[0]]

    def read(self, row: Row) -> list[Tensor]:
        """The row's tensors, on the CPU."""
        return [self._part(name, None) for name in row.hf]

    def piece(self, row: Row, parallel_size: int, rank: int) -> Tensor:
        """A tensor-parallel rank's piece of the row; little more than that is read."""
        return piece(row, self.config, parallel_size, rank, self._part)

    def _part(self, name: str, part: Part | None) -> Tensor:
        with _open(self._where[name]) as file:
            if part is None:
                return file.get_tensor(name)
            chosen = slice(part.start, part.stop)
            tensor = file.get_slice(name)
            return tensor[chosen] if part.dim == 0 else tensor[:, chosen]

    def _check_names(self) -> None:
        expected = {name for row in self.table for name in row.hf}
        present = set(self._where)
        if self.config.tie_word_embeddings:
            present.discard("lm_head.weight")  # some exporters write the tied copy as well
        missing, surplus = sorted(expected - present), sorted(present - expected)
        if not missing and not surplus:
            return
        renamed = [(name, near[0]) for name in missing[:5] if (near := get_close_matches(name, surplus, 1, 0.85))]
        hint = "".join(f"; {found} looks like {name} misnamed" for name, found in renamed)
        raise CheckpointError(
            f"{self.folder}: tensors do not fit config.json; missing: {missing[:5] or 'none'}, "
            f"surplus: {surplus[:5] or 'none'}{hint}"
        )

    def _inspect(self, path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of the file's tensors; notes their types."""
        types = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
        with _open(path) as file:
            inside = set(file.keys())
            for name in (name for name, where in self._where.items() if where == path):
                if name not in inside:
                    raise CheckpointError(f"{self.folder / INDEX} says that {path.name} holds {name}; it does not")
                tensor = file.get_slice(name)
                if tensor.get_dtype() not in types:
                    raise CheckpointError(
                        f"{path}: {name} is of type {tensor.get_dtype()}; supported: {', '.join(types)}"
                    )
                self._dtypes[name] = DTYPES[types[tensor.get_dtype()]]
                yield name, tuple(tensor.get_shape())


def _locate(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    index = folder / INDEX
    if index.exists():
        try:
            weight_map = json.loads(index.read_text())["weight_map"].items()
            where = {str(name): folder / Path(str(file)).name for name, file in weight_map}
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} is not an index of safetensors files: {error!r}") from None
        if absent := sorted({str(path) for path in where.values() if not path.exists()}):
            raise CheckpointError(f"{index} names files that are not there: {absent}")
        return where
    single = folder / SINGLE
    if not single.exists():
        raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}")
    with _open(single) as file:
        return dict.fromkeys(file.keys(), single)


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def write_folder(
    destination: Path, tensors: Iterable[tuple[str, Tensor]], like: Path, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write safetensors with the configuration and tokenizer of ``like``, aside first, then renamed.

    Holds one file's tensors at a time. An existing destination is replaced.
    """
    destination = Path(destination)
    aside = destination.with_name(destination.name + ".writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    copy_configuration(like, aside)
    owned = ((name, owned_copy(tensor)) for name, tensor in tensors)
    shards = []
    for number, shard in enumerate(group_by_size(((pair, pair[1].nbytes) for pair in owned), shard_bytes)):
        write_shard(aside / f"{number}.safetensors", dict(shard))
        shards.append(([name for name, _ in shard], sum(tensor.nbytes for _, tensor in shard)))
    for number, name in enumerate(shard_names(len(shards))):
        os.replace(aside / f"{number}.safetensors", aside / name)
    write_index(aside, shards)
    if destination.exists():
        retired = destination.with_name(destination.name + ".old")
        shutil.rmtree(retired, ignore_errors=True)
        os.replace(destination, retired)
        os.replace(aside, destination)
        shutil.rmtree(retired)
    else:
        os.replace(aside, destination)


def copy_configuration(like: Path, folder: Path) -> None:
    """The configuration and tokenizer of a Hugging Face folder, without its weights."""
    for file in Path(like).iterdir():
        if file.suffix in {".json", ".txt", ".jinja", ".model"} and file.name != INDEX:
            shutil.copy2(file, folder / file.name)


def group_by_size(items: Iterable[tuple[T, int]], limit: int) -> Iterator[list[T]]:
    """Runs of (item, bytes) of at most ``limit`` bytes together, or of a single larger one."""
    group: list[T] = []
    total = 0
    for item, size in items:
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group


def shard_names(count: int) -> list[str]:
    """Hugging Face's names for so many files."""
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def owned_copy(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous and sharing no memory, as safetensors wants it."""
    return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)


def write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """One safetensors file of owned copies."""
    from safetensors.torch import save_file

    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)  # safetensors makes it readable by its owner alone


def write_index(folder: Path, shards: list[tuple[list[str], int]]) -> None:
    """Which file holds what, given each file's (names, bytes); a single file needs none."""
    if len(shards) == 1:
        return
    files = shard_names(len(shards))
    where = {name: file for file, (names, _) in zip(files, shards, strict=True) for name in names}
    total = {"total_size": sum(size for _, size in shards)}
    (folder / INDEX).write_text(json.dumps({"metadata": total, "weight_map": where}, indent=2) + "\n")
