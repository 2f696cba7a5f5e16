"""What a checkpoint folder must hold: its manifest, and the check of its files, shared out over the ranks."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from megatron_empg.common import ranks
from megatron_empg.common.checkpoint_names import MANIFEST
from megatron_empg.common.files import put_json, sync
from megatron_empg.weights.checkpoints.errors import CheckpointError

Value = TypeVar("Value")


def file_records(folder: Path, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """{path below `folder`: {"bytes", "sha256"}}."""
    records = {}
    for path in paths:
        name = str(path.relative_to(folder))
        records[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    return records


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest, which must be the last file of a checkpoint."""
    put_json(folder / MANIFEST, content, indent=1)
    sync(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises CheckpointError when there is none, or none that can be read."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no readable {MANIFEST}: {error}") from error
    return manifest


def first_fault(folder: Path, files: Iterable[tuple[str, dict[str, Any]]]) -> str | None:
    """What is wrong with the first file that is not as recorded, by its path."""
    for name, record in files:
        path = folder / name
        if not path.exists():
            return f"{path} is missing"
        size = path.stat().st_size
        if size != record["bytes"]:
            return f"{path} has {size} bytes, not the {record['bytes']} that were written"
        if _sha256(path) != record["sha256"]:
            return f"{path} was altered: its checksum differs from the one in {MANIFEST}"
    return None


def check(folder: Path) -> dict[str, Any]:
    """The manifest, after comparing every file with it, each on one rank; all ranks together.

    Raises the same CheckpointError on every rank, naming a bad file.
    """
    manifest = on_first_rank(lambda: read_manifest(folder))
    largest_first = sorted(manifest["files"].items(), key=lambda item: (-item[1]["bytes"], item[0]))
    faults = ranks.gathered(first_fault(folder, largest_first[dist.get_rank() :: dist.get_world_size()]))
    found = [fault for fault in faults if fault]
    if found:
        raise CheckpointError(found[0])
    return manifest


def on_first_rank(work: Callable[[], Value]) -> Value:
    """What `work` returns on rank 0, on every rank; its OSError or CheckpointError is raised on every rank."""
    return ranks.on_first_rank(work, CheckpointError)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
