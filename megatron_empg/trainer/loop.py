"""The training loop, on every trainer rank: roll out, score, modulate, update, publish.

The driver answers with whole batches that follow from (seed, step) alone, and the weights of step n are policy
version n; so a run that goes on from checkpoint n asks for batch n next and repeats nothing.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_empg.actor.actor import Actor
from megatron_empg.actor.checkpoint import Checkpoints
from megatron_empg.actor.packing import Sequence
from megatron_empg.actor.platform import device
from megatron_empg.actor.reference import FrozenReference
from megatron_empg.actor.weights import ActorWeights, export_hugging_face
from megatron_empg.algorithms.policy_loss import kl_estimate
from megatron_empg.cluster.watchdog import Heartbeat
from megatron_empg.recipe import Recipe
from megatron_empg.trainer.advantages import (
    annotated_episodes,
    assign_advantages,
    assignment_metrics,
    training_sequences,
)
from megatron_empg.trainer.agreement import check_agreement
from megatron_empg.trainer.batch import Batch, without_texts
from megatron_empg.trainer.episode_log import write_episodes, write_steps
from megatron_empg.trainer.evaluation import Evaluation
from megatron_empg.trainer.metrics import MetricsWriter
from megatron_empg.trainer.policy_update import update_policy
from megatron_empg.trainer.progress_guard import ProgressGuard
from megatron_empg.trainer.run_folder import RunFolder


class Driver(Protocol):
    """Where batches and evaluations come from; asked on rank 0 only."""

    def rollout(self, step: int) -> bytes:
        """The batch of a step, as `Batch.to_bytes` made it."""
        ...

    def evaluate(self, split: str, greedy: bool) -> Evaluation:
        """Success of the engines' current policy on the split's fixed questions."""
        ...

    def probe(self) -> int:
        """Play a few training questions and forget them; raises if there is nothing to learn from."""
        ...


class Publisher(Protocol):
    """Brings weights to the engines; used on rank 0 only."""

    def publish(self, source: ActorWeights, version: int) -> object: ...


class Training:
    """One run on one trainer rank. ``driver`` and ``publisher`` are given on rank 0 alone."""

    def __init__(
        self,
        recipe: Recipe,
        actor: Actor,
        folder: RunFolder,
        *,
        driver: Driver | None,
        publisher: Publisher | None,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self.recipe, self.actor, self.folder = recipe, actor, folder
        self.driver, self.publisher, self.heartbeat = driver, publisher, heartbeat
        self.times: dict[str, float] = {}
        self.checkpoint_seconds = 0.0
        self.progress = ProgressGuard(recipe)
        wanted = recipe.algorithm.kl_to_initial_every or recipe.algorithm.kl_coefficient
        self.reference = FrozenReference(actor) if wanted else None
        self.checkpoints = Checkpoints(
            actor, folder.checkpoints, keep=recipe.run.keep_checkpoints, recipe=recipe.model_dump(mode="json")
        )
        self.first = self.checkpoints.load_newest()
        self.writer = self._open_writer() if driver else None

    def run(self) -> None:
        """Train to the recipe's last step, or until asked to stop."""
        steps, every = self.recipe.run.steps, self.recipe.run.checkpoint_every
        self._enter("sync")
        self._publish(self.first)
        if self.first == 0:
            self._probe()
            self._write(0, self._evaluate())
        saved = self.first
        for step in range(self.first, steps):
            metrics = self._step(step)
            if self.checkpoints.saving:
                with self._checkpoint_clock():
                    self.checkpoints.poll()
            done, stop = step + 1, self._agree(self.folder.stop.exists())
            if self._evaluation_due(done):
                metrics |= self._evaluate()
            self._write(done, metrics)
            if done % every == 0 or done == steps or stop:
                with self._checkpoint_clock():  # after the step's metrics are written, so that no step lacks them
                    self.checkpoints.save(done)
                saved = done
            if stop:
                break
        self.checkpoints.wait()
        if saved == steps:
            self._export()
        if self.writer:
            self.writer.close()

    def _step(self, step: int) -> dict[str, float]:
        recipe, actor = self.recipe, self.actor
        self.times, started = {}, time.monotonic()
        if self.heartbeat:
            self.heartbeat.step = step + 1
        with self._clock("rollout"):
            batch = self._fetch(step)
        metrics: dict[str, float] = {"policy_version": step, **batch.metrics}
        idle = self.progress.check_batch(step, batch)
        metrics["train/idle"] = float(idle)
        with self._clock("score"):
            scores = actor.score(batch.sequences, temperature=recipe.rollout.temperature)
        metrics |= check_agreement(batch, scores, step, recipe)
        assignment = assign_advantages(batch, scores, recipe.algorithm)
        metrics |= assignment_metrics(assignment)
        if batch.sequences:
            metrics |= actor.throughput["score"].metrics("actor/score")
        if idle:
            actor.skip_updates(recipe.algorithm.updates_per_batch)
        else:
            metrics |= self._update(step, training_sequences(batch, scores, assignment))
        with self._clock("sync"):
            self._publish(step + 1)
        if self.writer:
            write_episodes(
                self.folder,
                step + 1,
                annotated_episodes(step + 1, batch, assignment, recipe.logging.episodes_per_step),
            )
            write_steps(
                self.folder,
                step + 1,
                step_entropies=assignment.step_entropies.tolist(),
                step_advantages=assignment.step_advantages.tolist(),
                trajectory_advantages=assignment.trajectory[assignment.trajectory_ids].tolist(),
            )
        return metrics | self._timing(started, None if idle else batch)

    def _update(self, step: int, sequences: list[Sequence]) -> dict[str, float]:
        """The batch's optimizer steps, and what was measured of them."""
        recipe, actor = self.recipe, self.actor
        metrics = self._kl_to_initial(step, sequences)
        with self._clock("update"):
            update = update_policy(
                actor,
                sequences,
                recipe.algorithm,
                temperature=recipe.rollout.temperature,
                seed=recipe.run.seed * 1_000_003 + step,
            )
        self.progress.check_updates(step, update.applied)
        return metrics | update.metrics | actor.throughput["update"].metrics("actor/update")

    def _kl_to_initial(self, step: int, sequences: list[Sequence]) -> dict[str, float]:
        """KL of the policy that sampled the batch to the initial one, at the batch's own tokens.

        Where the loss has a term for it, the sequences get the ``reference_logprobs``.
        """
        algorithm = self.recipe.algorithm
        every = 1 if algorithm.kl_coefficient else algorithm.kl_to_initial_every
        if self.reference is None or step % every:
            return {}
        with self._clock("score"), self.reference.in_place():
            initial = self.actor.score(sequences, temperature=self.recipe.rollout.temperature)
        if algorithm.kl_coefficient:
            for sequence, score in zip(sequences, initial, strict=True):
                sequence.values["reference_logprobs"] = score.logprobs
        ours = torch.cat([s.values["old_logprobs"] for s in sequences])
        return {"policy/kl_to_initial": float(kl_estimate(ours, torch.cat([s.logprobs for s in initial])).mean())}

    def _fetch(self, step: int) -> Batch:
        """Rank 0 asks the driver and keeps the texts; every rank gets the numbers."""
        if self.driver:
            data = self.driver.rollout(step)
            broadcast_bytes(without_texts(data))
            return Batch.from_bytes(data)
        return Batch.from_bytes(broadcast_bytes(memoryview(b"")))

    def _publish(self, version: int) -> None:
        """Rank 0 sends; the ranks of its replica gather the tensors with it."""
        self.actor.settle()
        weights = self.actor.weights()
        if self.publisher:
            self.publisher.publish(weights, version)
        elif self.actor.sends_weights and dist.get_rank() > 0:
            for _ in weights:
                pass
        dist.barrier()

    def _probe(self) -> None:
        """Before the first step a few episodes are played: what cannot be learnt from is an error now."""
        self._enter("rollout")
        if self.driver:
            self.driver.probe()
        dist.barrier()

    def _evaluation_due(self, done: int) -> bool:
        every = self.recipe.evaluation.every
        return done == self.recipe.run.steps or bool(every and done % every == 0)

    def _evaluate(self) -> dict[str, float]:
        """Success on every split, sampled and greedily. No rank waits longer for another than one pass takes."""
        settings = self.recipe.evaluation
        metrics: dict[str, float] = {}
        if not settings.questions:
            return metrics
        started = time.monotonic()
        for split in settings.splits:
            for greedy in (False, True) if settings.greedy else (False,):
                self._enter("evaluate")
                if self.driver:
                    metrics |= self.driver.evaluate(split, greedy).metrics()
                dist.barrier()
        metrics["time/evaluate"] = time.monotonic() - started
        return metrics

    def _export(self) -> None:
        """The final policy as a Hugging Face folder, ready for any engine."""
        self._enter("export")
        export_hugging_face(self.actor, self.folder.policy, like=self.recipe.model.path)
        if dist.get_rank() == 0:
            self.folder.note_export(self.recipe.run.steps)

    def _open_writer(self) -> MetricsWriter:
        logging = self.recipe.logging
        return MetricsWriter(
            self.folder,
            first_step=self.first + 1 if self.first else 0,
            tensorboard=logging.tensorboard,
            wandb=logging.wandb,
            recipe=self.recipe.model_dump(mode="json"),
        )

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        if self.writer:
            self.writer.write(step, metrics)

    def _timing(self, started: float, trained: Batch | None) -> dict[str, float]:
        """Seconds by phase; what lies between the phases is ``time/other``."""
        total = time.monotonic() - started
        phases = {f"time/{name}": seconds for name, seconds in self.times.items()}
        if self.checkpoint_seconds:
            phases["time/checkpoint"] = self.checkpoint_seconds
            self.checkpoint_seconds = 0.0
        if trained is not None:
            phases["tokens_per_second"] = sum(s.num_own_tokens for s in trained.sequences) / total
        return {**phases, "time/other": total - sum(self.times.values()), "time/step": total}

    @contextmanager
    def _clock(self, phase: str) -> Iterator[None]:
        self._enter(phase)
        started = time.monotonic()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times[phase] = self.times.get(phase, 0.0) + time.monotonic() - started

    @contextmanager
    def _checkpoint_clock(self) -> Iterator[None]:
        """Seconds that training stands still for a checkpoint; they count with the next step."""
        self._enter("checkpoint")
        started = time.monotonic()
        yield
        self.checkpoint_seconds += time.monotonic() - started

    def _enter(self, phase: str) -> None:
        if self.heartbeat:
            self.heartbeat.enter(phase)

    def _agree(self, flag: bool) -> bool:
        """Rank 0's answer, on every rank."""
        answer = torch.tensor([int(flag)], device=device())
        dist.broadcast(answer, 0)
        return bool(answer.item())


CHUNK_BYTES = 64 << 20
"""Bytes on the device at once while a batch goes to all ranks."""


def broadcast_bytes(data: memoryview) -> bytes:
    """Rank 0's bytes, on every other rank; rank 0 itself gets none back.

    Holds one chunk on the device, and besides the result one copy of it on the host for a moment.
    """
    sending = dist.get_rank() == 0
    size = torch.tensor([len(data)], device=device())
    dist.broadcast(size, 0)
    whole = _as_tensor(data) if sending else torch.empty(int(size), dtype=torch.uint8)
    for part in whole.split(CHUNK_BYTES) if len(whole) else ():
        chunk = part.to(size.device)
        dist.broadcast(chunk, 0)
        if not sending and chunk is not part:
            part.copy_(chunk)
    return b"" if sending else whole.numpy().tobytes()


def _as_tensor(data: memoryview) -> Tensor:
    """The same memory, which is only read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(data, dtype=torch.uint8) if len(data) else torch.empty(0, dtype=torch.uint8)
