"""How a command gets into an image: options of srun (Pyxis), or words before the command (Apptainer)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from megatron_empg.launch.job_error import misconfigured


@dataclass(frozen=True)
class Container:
    """Both are empty where the job runs without an image."""

    in_srun: tuple[str, ...] = ()
    in_task: tuple[str, ...] = ()


def mounts(home: str, given: str, paths: Iterable[str], exists: Callable[[str], bool] = os.path.exists) -> str:
    """`home`, the `given` "host:container,…" mounts, and each absolute path or the folder it is to be made in.

    What is relative lies below `home`. Example: mounts("/repo", "", ["/data/run"]) is "/repo:/repo,/data:/data"
    where /data/run is still to be made.
    """
    found = f"{home}:{home}"
    if given:
        found += f",{given}"
    for path in paths:
        existing = path
        while _is_below_root(existing) and not exists(existing):
            existing = existing.rpartition("/")[0] or "/"
        if _is_below_root(existing) and f",{existing}:" not in f",{found},":
            found += f",{existing}:{existing}"
    return found


def _is_below_root(path: str) -> bool:
    return path.startswith("/") and len(path) > 1


def choose_container(image: str, mounted: str, home: str, *, pyxis: bool, apptainer: bool) -> Container:
    """`pyxis`, `apptainer`: whether they are there. Raises JobError."""
    if not image:
        return Container()
    if pyxis:
        options = (f"--container-image={image}", f"--container-workdir={home}", "--no-container-mount-home")
        return Container(in_srun=(*options, f"--container-mounts={mounted}"))
    if apptainer:
        return Container(in_task=("apptainer", "exec", "--nv", "--bind", mounted, "--pwd", home, image))
    raise misconfigured(
        "EMPG_CONTAINER is set, but srun has no --container-image (Pyxis) and there is no apptainer"
    )
