"""Checkpoints by megatron-core's dist_checkpointing: written in the background, read in any layout."""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch.distributed as dist

from megatron_empg import __version__
from megatron_empg.actor import sharded_state
from megatron_empg.actor.background_write import BackgroundWrite
from megatron_empg.actor.manifest import (
    CheckpointError,
    check,
    file_records,
    on_first_rank,
    write_manifest,
)
from megatron_empg.actor.parallel import data_and_context_group
from megatron_empg.common.files import sync
from megatron_empg.common.ranks import gathered
from megatron_empg.run.checkpoint_folders import finished_steps, step_folder
from megatron_empg.upstream import megatron_checkpointing


@dataclass(frozen=True)
class _Target:
    """A checkpoint to be: where it is written, where it belongs, and what its manifest will say."""

    aside: Path
    final: Path
    bytes: int
    manifest: dict[str, Any]


class Stateful(Protocol):
    """What a run carries from step to step beside the actor, the same on every rank."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as JSON."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse. Raises ValueError for the state of another kind of it."""
        ...


class Checkpoints:
    """The checkpoints of a run, the newest `keep` of them. Every method is entered by all ranks together.

    An interrupted save leaves only a ``.writing`` folder behind, which the next one removes.
    """

    def __init__(
        self,
        actor: Any,
        root: Path,
        *,
        keep: int,
        recipe: dict[str, Any] | None = None,
        algorithm: Stateful | None = None,
    ) -> None:
        """`recipe`: what the manifests shall say of the run. `algorithm`: its state goes into the manifest, and
        comes back from there."""
        self.actor, self.root, self.keep, self.recipe = actor, Path(root), keep, recipe
        self.algorithm = algorithm
        self._saving: tuple[_Target, BackgroundWrite] | None = None

    @property
    def saving(self) -> bool:
        """Whether a save is under way."""
        return self._saving is not None

    def save(self, step: int) -> None:
        """Copy the actor's state and start to write it as that after `step` training steps.

        It counts once `poll` or `wait` has finished it; a save before it is waited for. Raises CheckpointError
        on every rank when there is no room for it.
        """
        self.wait()
        self.actor.settle()
        state = sharded_state.sharded_state(self.actor, loading=False)
        final = step_folder(self.root, step)
        aside = final.with_name(final.name + ".writing")
        target = _Target(aside, final, sharded_state.size(state), self._manifest(step))
        on_first_rank(lambda: self._make_room(target))
        with self._failing_by_name(target):
            self._saving = target, BackgroundWrite(_plan(state, aside / "megatron"), aside)

    def poll(self) -> None:
        """Finish the save under way if every rank has written its part; cheap, to be called once per step."""
        if self._saving and all(gathered(self._saving[1].done)):
            self.wait()

    def wait(self) -> None:
        """Finish the save under way. Raises CheckpointError on every rank when it could not be written."""
        if self._saving is None:
            return
        (target, write), self._saving = self._saving, None
        write.wait()
        parts = gathered((write.files, write.error))
        errors = [error for _, error in parts if error]
        if errors:
            on_first_rank(lambda: self._give_up(target, errors[0]))
        with self._failing_by_name(target):
            write.finalize()
        files: dict[str, dict[str, Any]] = {}
        for of_rank, _ in parts:
            files |= of_rank
        on_first_rank(lambda: self._publish(target, files))

    def load_newest(self) -> int:
        """Load the newest checkpoint; its step, or 0 without one. Raises CheckpointError as `load` does.

        Where the checkpoint holds no state of the algorithm, that stays as it is.
        """
        steps = on_first_rank(lambda: finished_steps(self.root))
        if not steps:
            return 0
        manifest = load(self.actor, self.root, steps[-1])
        if self.algorithm is not None and "algorithm" in manifest:
            try:
                self.algorithm.load_state_dict(manifest["algorithm"])
            except ValueError as error:
                raise CheckpointError(f"{step_folder(self.root, steps[-1])}: {error}") from error
        return steps[-1]

    def _manifest(self, step: int) -> dict[str, Any]:
        libraries = {name: version(name) for name in ("megatron-core", "torch")}
        state: dict[str, Any] = {}
        if self.algorithm is not None:
            # A copy, by way of text: it is written later, and the algorithm goes on until then.
            state["algorithm"] = json.loads(json.dumps(self.algorithm.state_dict()))
        return {
            "step": step,
            "schedule_steps": self.actor.scheduler.num_steps,
            "layout": self.actor.settings.sizes,
            **sharded_state.kind(self.actor),
            "recipe": self.recipe,
            **state,
            "versions": {"megatron_empg": __version__, **libraries, "python": platform.python_version()},
        }

    def _make_room(self, target: _Target) -> None:
        for unfinished in self.root.glob("step_*.writing"):
            shutil.rmtree(unfinished)
        self.root.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.root).free < target.bytes:
            raise self._failure(target, "no space left")
        (target.aside / "megatron").mkdir(parents=True)

    def _publish(self, target: _Target, files: dict[str, dict[str, Any]]) -> None:
        """Write the manifest, give the folder its final name, and remove checkpoints beyond those to keep."""
        with self._failing_by_name(target):
            present = [path for path in sorted(target.aside.rglob("*")) if path.is_file()]
            others = [path for path in present if str(path.relative_to(target.aside)) not in files]
            files |= file_records(target.aside, others)
            write_manifest(target.aside, {**target.manifest, "files": files})
            sync(target.aside / "megatron")
            shutil.rmtree(target.final, ignore_errors=True)
            os.replace(target.aside, target.final)
            sync(self.root)
        for old in finished_steps(self.root)[: -self.keep]:
            shutil.rmtree(step_folder(self.root, old))

    @contextmanager
    def _failing_by_name(self, target: _Target) -> Iterator[None]:
        """Name the file in errors where rank 0 writes the small files that belong to no rank."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if dist.get_rank() > 0:
                raise
            self._give_up(target, str(error))

    def _give_up(self, target: _Target, cause: str) -> NoReturn:
        failure = self._failure(target, cause)
        shutil.rmtree(target.aside, ignore_errors=True)
        raise failure

    def _failure(self, target: _Target, cause: str) -> CheckpointError:
        done = [step for step in finished_steps(self.root) if step != target.manifest["step"]]
        left = ""
        if done:
            left = f"; the checkpoint of step {done[-1]} is untouched"
        return CheckpointError(
            f"{target.final} could not be saved: {cause}. It needs about {_in_words(target.bytes)}, "
            f"{_in_words(shutil.disk_usage(self.root).free)} are free there{left}. Make room and start again"
        )


def load(actor: Any, root: Path, step: int) -> dict[str, Any]:
    """Load weights, optimizer, schedule and (in the layout it was saved in) random states; all ranks together.

    Returns the checkpoint's manifest.

    Raises CheckpointError on every rank: for a missing or altered file with the last whole checkpoint and how
    to go on from it, for another model with what differs.
    """
    folder = step_folder(root, step)
    try:
        manifest = check(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {_way_on(Path(root), step)}") from None
    _require_same_kind(manifest, actor, folder)
    same_layout = manifest["layout"] == actor.settings.sizes
    state = sharded_state.sharded_state(actor, loading=True, with_rng=same_layout)
    loaded = _read(state, folder / "megatron")
    sharded_state.restore(actor, loaded, schedule_steps=manifest["schedule_steps"])
    return manifest


def _way_on(root: Path, broken: int) -> str:
    """What to do about a broken checkpoint: the newest whole one before it, and which folders stand in its way."""
    bad = [broken]
    for step in reversed(on_first_rank(lambda: finished_steps(root))):
        if step < broken:
            try:
                check(step_folder(root, step))
            except CheckpointError:
                bad.append(step)
                continue
            folders = " ".join(str(step_folder(root, each)) for each in bad)
            return f"The checkpoint of step {step} is whole: remove {folders} to go on from there"
    return f"No earlier checkpoint is whole: restore the file, or remove {root} to start from step 0"


def _require_same_kind(manifest: dict[str, Any], actor: Any, folder: Path) -> None:
    ours = sharded_state.kind(actor)
    model = {name for name, value in ours["model"].items() if manifest["model"].get(name) != value}
    if model:
        raise CheckpointError(
            f"{folder} is of another model: {sorted(model)} differ; give that model, or another run folder"
        )
    for name in ("dtype", "distributed_optimizer"):
        if manifest[name] != ours[name]:
            raise CheckpointError(
                f"{folder} was saved with {name}={manifest[name]} and cannot be loaded with {ours[name]}: the "
                f"optimizer keeps other tensors; set {name} to {manifest[name]}, or give another run folder"
            )


def _plan(state: dict[str, Any], folder: Path) -> Any:
    """Megatron's AsyncRequest to write the state; small common state may be written at once.

    What several ranks hold alike is shared out among them, so that all of them write.
    """
    from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper

    megatron_checkpointing.queue_of_this_process()
    strategy = FullyParallelSaveStrategyWrapper(get_default_save_sharded_strategy(), data_and_context_group())
    return megatron_checkpointing.planned_save(state, folder, strategy)


def _read(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fill the state from the files: what several ranks want is read by one of them."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper

    strategy = FullyParallelLoadStrategyWrapper(
        get_default_load_sharded_strategy(str(folder)), data_and_context_group()
    )
    loaded: dict[str, Any] = dist_checkpointing.load(state, str(folder), strategy)
    return loaded


def _in_words(count: float) -> str:
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{count / 2**20:.1f} MiB"
