"""The model, as a part of every preparation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from megatron_empg.prepare.costs import Cost
from megatron_empg.prepare.fetching import FolderFetcher
from megatron_empg.prepare.manifest import PreparedFolder, PreparedModel
from megatron_empg.prepare.model import ModelFolder, expected_bytes, fetch_model, name_of
from megatron_empg.prepare.work import InitialFolder, PreparationRun


@dataclass(frozen=True)
class ModelPart:
    """`wanted` is what --model or the sources say. Models that are here already stay beside it."""

    wanted: str
    name: ClassVar[str] = "model"

    def require(self) -> None:
        """Nothing: what can be told of a model is told whichever parts are wanted."""

    def cost(self, before: InitialFolder) -> Cost:
        whole = expected_bytes(self.wanted)
        there = _bytes_below(before.folder / "model" / name_of(self.wanted))
        left = max(0, whole - there)
        return Cost(self.name, left, left, unknown=not whole and not there)

    def fetch(self, work: PreparationRun, fetching: FolderFetcher) -> None:
        name = name_of(self.wanted)
        found = fetch_model(self.wanted, fetching, _earlier(work.prepared, name))
        files = [work.file(file) for file in found.files]
        model = PreparedModel(path=found.path, origin=found.origin, files=files)
        work.keep(models={**work.prepared.models, name: model})


def _earlier(prepared: PreparedFolder, name: str) -> ModelFolder | None:
    earlier = prepared.models.get(name)
    if earlier is None:
        return None
    files = tuple(file.path for file in earlier.files)
    return ModelFolder(name, earlier.path, earlier.origin, files)


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
