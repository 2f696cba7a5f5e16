"""Checkpoints of the actor by megatron-core's dist_checkpointing: written aside, checked on load, any layout."""

import hashlib
import json
import os
import queue
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

MANIFEST = "manifest.json"
_OPTIMIZER_FORMAT = {"distrib_optim_sharding_type": "fully_reshardable"}


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message names the file or the mismatch, and the fix."""


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint taken after `step` training steps lies."""
    return Path(root) / f"step_{step:06d}"


def finished_steps(root: Path) -> list[int]:
    """Steps with a whole checkpoint, oldest first."""
    names = [path.parent.name.removeprefix("step_") for path in Path(root).glob(f"step_*/{MANIFEST}")]
    return sorted(int(name) for name in names if name.isdigit())  # not those still being written


def save(actor: Any, root: Path, step: int, *, keep: int) -> Path:
    """Write ``root/step_…`` (all ranks together), then drop all but the newest `keep`.

    An interrupted save leaves only a ``.writing`` folder behind, which the next one removes.
    """
    from megatron.core import dist_checkpointing

    final = step_folder(root, step)
    aside = final.with_name(final.name + ".writing")
    if dist.get_rank() == 0:
        for unfinished in Path(root).glob("step_*.writing"):
            shutil.rmtree(unfinished)
        (aside / "megatron").mkdir(parents=True)
    dist.barrier()
    _keep_write_results_in_process()
    dist_checkpointing.save(_sharded_state(actor, loading=False), str(aside / "megatron"))
    dist.barrier()
    if dist.get_rank() == 0:
        _write_manifest(actor, aside, step)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        for old in finished_steps(root)[:-keep]:
            shutil.rmtree(step_folder(root, old))
    dist.barrier()
    return final


def load(actor: Any, root: Path, step: int) -> None:
    """Load model, optimizer, schedule and (in the layout it was saved in) random states.

    Raises CheckpointError naming a missing or altered file, or what differs between the models.
    """
    from megatron.core import dist_checkpointing

    folder = step_folder(root, step)
    manifest = check(folder)
    if manifest["model"] != asdict(actor.config):
        different = {k for k, v in asdict(actor.config).items() if manifest["model"].get(k) != v}
        raise CheckpointError(f"{folder} is of another model: {sorted(different)} differ")
    same_layout = manifest["layout"] == asdict(actor.layout)
    state = dist_checkpointing.load(
        _sharded_state(actor, loading=True, with_rng=same_layout), str(folder / "megatron")
    )
    actor.model[0].module.load_state_dict(state["model"])
    actor.optimizer.load_state_dict(state["optimizer"])
    actor.scheduler.num_steps = 0
    actor.scheduler.step(increment=manifest["schedule_steps"])
    if same_layout:
        _set_rng(state["rng"])


def check(folder: Path) -> dict[str, Any]:
    """The manifest, after comparing every file with it. Raises CheckpointError naming the first bad file."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder} has no readable {MANIFEST}: {error}") from error
    for name, digest in manifest["files"].items():
        path = folder / name
        if not path.exists():
            raise CheckpointError(f"{path} is missing; remove {folder} to go on from the checkpoint before it")
        if _digest(path) != digest:
            raise CheckpointError(f"{path} was altered or cut short; remove {folder} to go on from the one before")
    return manifest


def _keep_write_results_in_process() -> None:
    """Spare the manager process that Megatron starts on each rank for the results of asynchronous writes.

    It would outlive a killed rank for ever. Writes here are synchronous, for which a plain queue does.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = queue.Queue()


def _sharded_state(actor: Any, *, loading: bool, with_rng: bool = True) -> dict[str, Any]:
    from megatron.core.dist_checkpointing import ShardedObject

    module = actor.model[0].module
    model = module.sharded_state_dict()
    state: dict[str, Any] = {
        "model": model,
        "optimizer": actor.optimizer.sharded_state_dict(model, is_loading=loading, metadata=_OPTIMIZER_FORMAT),
    }
    if with_rng:
        world, rank = dist.get_world_size(), dist.get_rank()
        state["rng"] = ShardedObject("rng", _get_rng(), (world,), (rank,))
    return state


def _get_rng() -> dict[str, Any]:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    return {
        "cpu": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "tracker": get_cuda_rng_tracker().get_states(),
    }


def _set_rng(state: dict[str, Any]) -> None:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    torch.set_rng_state(state["cpu"])
    torch.cuda.set_rng_state(state["device"])
    get_cuda_rng_tracker().set_states(state["tracker"])


def _write_manifest(actor: Any, folder: Path, step: int) -> None:
    files = {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = {
        "step": step,
        "schedule_steps": actor.scheduler.num_steps,
        "model": asdict(actor.config),
        "layout": asdict(actor.layout),
        "files": files,
    }
    aside = folder / (MANIFEST + ".writing")
    aside.write_text(json.dumps(manifest, indent=1))
    os.replace(aside, folder / MANIFEST)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
