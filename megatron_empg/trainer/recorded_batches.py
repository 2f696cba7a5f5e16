"""Batches of a stream, written down before they are trained on: what a run consumed, and in which order.

A batch that is there is used again, so that a run which goes on repeats its steps to the bit; and so does another
run that trains on a folder's batches.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_empg.common.files import put_bytes
from megatron_empg.rollout.service.batch import account_in
from megatron_empg.rollout.service.client import RolloutServiceClient
from megatron_empg.rollout.service.evaluation import Evaluation
from megatron_empg.rollout.service.slots import StreamAccount
from megatron_empg.rollout.service.stale_engines import StaleEngines
from megatron_empg.run.checkpoint_folders import finished_steps
from megatron_empg.run.folder import RunFolder
from megatron_empg.trainer.errors import TrainingError

if TYPE_CHECKING:
    from megatron_empg.actor.weights import ActorWeights
    from megatron_empg.recipe import Recipe
    from megatron_empg.trainer.loop import Publisher


_log = logging.getLogger(__name__)
ROOM_SECONDS = 60.0
"""How long a disk may be full before a run ends: others may be making room."""
PAUSE = 2.0
"""Seconds between two tries."""


def _write(step: int, path: Path, data: bytes) -> None:
    """Raises TrainingError where there is no room, and none is made."""
    until = time.monotonic() + ROOM_SECONDS
    while True:
        try:
            path.parent.mkdir(exist_ok=True)
            put_bytes(path, data)
            return
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full or time.monotonic() >= until:
                raise TrainingError(
                    f"step {step}: its batch could not be written to {path}, without which the run could not go "
                    f"on: {error}. Make room and start again"
                ) from error
            _log.warning("step %d: its batch cannot be written yet, and is tried again: %s", step, error)
        time.sleep(PAUSE)


class RecordedBatches:
    """The rollout service with a stream, asked for what is not in the run folder yet. Of rank 0 alone.

    Batches stay as long as a run could go on from before them: there are `keep` checkpoints, the first of which is
    the beginning where there are fewer. With `keep_all` they all stay.
    """

    def __init__(self, service: RolloutServiceClient, folder: RunFolder, *, keep: int, keep_all: bool) -> None:
        self._service, self._folder = service, folder
        self._keep, self._keep_all = keep, keep_all
        self._account: StreamAccount | None = None
        self._begun = False

    def rollout(self, step: int) -> bytes | StaleEngines:
        """The batch of a step. Raises TrainingError where it cannot be written down."""
        path = self._folder.batch(step + 1)
        if path.exists():
            recorded = path.read_bytes()
            _account_of(path, recorded, step + 1)  # of this step; the stream goes on behind the last one
            return recorded
        data = self._service.rollout(step)
        if isinstance(data, StaleEngines):
            return data
        _write(step, path, data)
        self._account = account_in(data)
        try:
            self._clear()
        except OSError as error:
            _log.warning("step %d: batches that no checkpoint needs could not be removed: %s", step, error)
        return data

    def published(self, version: int) -> None:
        """The engines hold the weights of this version. The stream goes on behind the last batch that is there."""
        if not self._begun:
            self._account, self._begun = self._last_account(version), True
        self._service.published(version, self._account)

    def evaluate(self, split: str, greedy: bool) -> Evaluation | StaleEngines:
        return self._service.evaluate(split, greedy)

    def probe(self) -> int | StaleEngines:
        return self._service.probe()

    def _last_account(self, first: int) -> StreamAccount | None:
        """Of the last of the batches that follow each other from that before step `first` on; None before all.

        Raises TrainingError where others are there behind a gap: a new batch of the missing step would take other
        groups than those continue, and some would be trained on twice.
        """
        there = set(self._folder.batch_steps())
        last = first
        while last + 1 in there:
            last += 1
        beyond = sorted(step for step in there if step > last)
        if beyond:
            raise TrainingError(
                f"{self._folder.batch(last + 1)} is missing and {self._folder.batch(beyond[0])} is there, which "
                "continues it: put the first back, or delete the batches of later steps"
            )
        if not last:
            return None
        path = self._folder.batch(last)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error) from error
        return _account_of(path, data, last)

    def _clear(self) -> None:
        """Away with batches that no checkpoint needs."""
        done = finished_steps(self._folder.checkpoints)
        if self._keep_all or len(done) < self._keep:
            return
        for step in self._folder.batch_steps():
            if step < done[0]:
                self._folder.batch(step).unlink(missing_ok=True)


def _account_of(path: Path, data: bytes, step: int) -> StreamAccount:
    """Where a stream stood behind this batch of a run's step, counted from 1. Raises TrainingError."""
    try:
        account = account_in(data)
    except ValueError as error:
        raise _unreadable(path, error) from error
    if account is None or account.batches != step:
        raise TrainingError(f"{path} is not the batch of step {step} of a run with rollout.max_lag")
    return account


def _unreadable(path: Path, error: Exception) -> TrainingError:
    return TrainingError(
        f"{path} cannot be read ({error}): it says which groups were trained on, so that none is twice; "
        "go on from a checkpoint whose batch is there"
    )


class ReplayedBatches:
    """The batches of a finished or running run in another folder, in the place of new ones. Of rank 0 alone."""

    def __init__(self, service: RolloutServiceClient, recorded: RunFolder) -> None:
        self._service, self._recorded = service, recorded

    def rollout(self, step: int) -> bytes:
        """The batch of a step. Raises TrainingError where the folder has none."""
        path = self._recorded.batch(step + 1)
        try:
            data = path.read_bytes()
        except OSError as error:
            kept = self._recorded.batch_steps()
            there = f"it has those of steps {kept[0]} to {kept[-1]}" if kept else "it has none"
            raise TrainingError(
                f"step {step}: rollout.replay_from {self._recorded.root} has no batch of step {step + 1} "
                f"({error}); {there}. A run keeps all of them with rollout.keep_all_batches"
            ) from error
        _account_of(path, data, step + 1)
        return data

    def published(self, version: int) -> None:
        """Nobody streams."""

    def evaluate(self, split: str, greedy: bool) -> Evaluation | StaleEngines:
        return self._service.evaluate(split, greedy)

    def probe(self) -> int | StaleEngines:
        return self._service.probe()


class ToldPublisher:
    """Brings weights to the engines, and tells where batches come from that they are there."""

    def __init__(self, sender: Publisher, batches: RecordedBatches | ReplayedBatches) -> None:
        self._sender, self._batches = sender, batches

    def publish(self, source: ActorWeights, version: int) -> None:
        """Raises as the sender and the rollout service do."""
        self._sender.publish(source, version)
        self._batches.published(version)

    def refit(self, source: ActorWeights, version: int, engines: Sequence[str]) -> None:
        """Nothing is published by it: engines that came back get what the others hold."""
        self._sender.refit(source, version, engines)


def batches_of(
    recipe: Recipe, service: RolloutServiceClient, folder: RunFolder
) -> RecordedBatches | ReplayedBatches:
    """Where the batches of a run with `rollout.max_lag` come from."""
    rollout, keep = recipe.rollout, recipe.run.keep_checkpoints
    if rollout.replay_from is not None:
        return ReplayedBatches(service, RunFolder(rollout.replay_from))
    return RecordedBatches(service, folder, keep=keep, keep_all=rollout.keep_all_batches)
