"""Where an evaluation's document is to go, looked at before hours of playing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from megatron_empg.evaluate.errors import EvaluationError


def require_destination(path: Path) -> None:
    """Raises EvaluationError for a document that could not be written in the end, nor its outcomes beside it."""
    if path == Path():
        raise EvaluationError("--json is empty, or the current folder: name a file, as in out/evaluation.json")
    if path.is_dir() or path.name == "..":
        raise EvaluationError(f"--json {path} is a folder: name a file in it, as in {path / 'evaluation.json'}")
    folder = _nearest(path.parent)
    if not folder.is_dir():
        raise EvaluationError(f"--json {path}: {folder} is not a folder; name a file in a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EvaluationError(f"--json {path}: nothing can be written in {folder}; name a file elsewhere")


def make_folder(path: Path, say: Callable[[str], None]) -> None:
    """The folder of a document, which is said where it is a new one. Raises EvaluationError."""
    if path.parent.is_dir():
        return
    say(f"--json {path}: making the folder {path.parent}, which is not there yet")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"--json {path}: {error.filename} cannot be made: {error.strerror}") from None


def _nearest(folder: Path) -> Path:
    """The folder itself, or the first above it that is there."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder
