"""Which checkpoints a folder holds, by the names of its subfolders; light to import, without torch."""

from pathlib import Path


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
