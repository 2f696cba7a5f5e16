"""Hugging Face folders: safetensors read by name with every fault named, and written whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_empg.weights.mapping import Row
from megatron_empg.weights.model_config import ModelConfig

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class CheckpointError(ValueError):
    """A checkpoint whose files or tensors are not what the model's configuration says."""


class CheckpointReader:
    """Reads the tensors of a Hugging Face folder row by row. Opening checks names and shapes of them all."""

    def __init__(self, folder: Path, table: list[Row], config: ModelConfig) -> None:
        self.folder = Path(folder)
        self._table, self._config = table, config
        self._files: dict[str, Any] = {}
        self._where: dict[str, Path] = {}

    def __enter__(self) -> "CheckpointReader":
        self._where = _locate(self.folder)
        for path in sorted(set(self._where.values())):
            self._files[str(path)] = _open(path)
        self._check()
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()

    def read(self, row: Row) -> list[Tensor]:
        """The row's tensors, on the CPU."""
        return [self._files[str(self._where[name])].get_tensor(name) for name in row.hf]

    def _check(self) -> None:
        expected = {name: shape for row in self._table for name, shape in zip(row.hf, row.shapes, strict=True)}
        present = set(self._where)
        if self._config.tie_word_embeddings:
            present.discard("lm_head.weight")  # some exporters write the tied copy as well
        missing, surplus = sorted(set(expected) - present), sorted(present - set(expected))
        if missing or surplus:
            raise CheckpointError(
                f"{self.folder}: tensors do not fit config.json; missing: {missing[:5] or 'none'}, "
                f"surplus: {surplus[:5] or 'none'}"
            )
        for name, shape in expected.items():
            found = tuple(self._files[str(self._where[name])].get_slice(name).get_shape())
            if found != shape:
                raise CheckpointError(f"{self.folder}: {name} has shape {list(found)}, expected {list(shape)}")


def _locate(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    if (folder / INDEX).exists():
        where = {
            name: folder / file for name, file in json.loads((folder / INDEX).read_text())["weight_map"].items()
        }
        absent = sorted({str(path) for path in where.values() if not path.exists()})
        if absent:
            raise CheckpointError(f"{folder / INDEX} names files that are not there: {absent}")
        return where
    single = folder / SINGLE
    if not single.exists():
        raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}")
    return dict.fromkeys(_open(single).keys(), single)


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def write_folder(destination: Path, tensors: Iterable[tuple[str, Tensor]], like: Path) -> None:
    """Write one safetensors file with the configuration and tokenizer of ``like``, aside first, then renamed.

    An existing destination is replaced.
    """
    from safetensors.torch import save_file

    destination = Path(destination)
    aside = destination.with_name(destination.name + ".writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for file in Path(like).iterdir():
        if file.suffix in {".json", ".txt", ".jinja", ".model"} and file.name != INDEX:
            shutil.copy2(file, aside / file.name)
    save_file({name: t.contiguous().cpu().clone() for name, t in tensors}, aside / SINGLE, {"format": "pt"})
    (aside / SINGLE).chmod(0o644)  # safetensors makes it readable by its owner alone
    if destination.exists():
        retired = destination.with_name(destination.name + ".old")
        shutil.rmtree(retired, ignore_errors=True)
        os.replace(destination, retired)
        os.replace(aside, destination)
        shutil.rmtree(retired)
    else:
        os.replace(aside, destination)
