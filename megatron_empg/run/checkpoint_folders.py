"""Which checkpoints a folder holds, by the names of its subfolders; light to import, without torch."""

from contextlib import suppress
from pathlib import Path

from megatron_empg.run.names import RunPaths

SLOWEST_READ = 500e6
"""Bytes of a checkpoint per second that all ranks together read at least."""


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint taken after `step` training steps lies, below the folder `root` of all checkpoints."""
    return Path(root) / f"step_{step:06d}"


def finished_steps(root: Path) -> list[int]:
    """Steps whose save was finished, oldest first; what became of their files since then the manifests say."""
    found = []
    for folder in Path(root).glob("step_*"):
        digits = folder.name.removeprefix("step_")
        # One that is still being written has another name, and so has what somebody put aside.
        if digits.isdecimal() and folder == step_folder(root, int(digits)) and folder.is_dir():
            found.append(int(digits))
    return sorted(found)


def last_step(root: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    return max(finished_steps(root), default=0)


def reading_seconds(run_folder: Path) -> float:
    """What reading the newest checkpoint may take, to be added to the limit of the phase "start"; 0 without one.

    Ranks read on their own and no collective ends meanwhile; a policy of 32 billion parameters has 460 GB.
    """
    checkpoints, size = RunPaths(run_folder).checkpoints, 0
    newest = last_step(checkpoints)
    if not newest:
        return 0.0
    for path in step_folder(checkpoints, newest).rglob("*"):
        with suppress(OSError):  # an old one may be taken away meanwhile
            size += path.stat().st_size
    return size / SLOWEST_READ
