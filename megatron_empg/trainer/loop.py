"""The training loop, on every trainer rank: roll out, score, give credit, update, publish.

The driver answers with whole batches that follow from (seed, step) alone, and the weights of step n are policy
version n; so a run that goes on from checkpoint n asks for batch n next and repeats nothing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

import torch.distributed as dist

from megatron_empg.actor.actor import Actor
from megatron_empg.actor.checkpoint import Checkpoints
from megatron_empg.actor.platform import device
from megatron_empg.actor.reference import FrozenReference
from megatron_empg.actor.weights import ActorWeights, export_hugging_face
from megatron_empg.algorithms.algorithm import Algorithm
from megatron_empg.algorithms.base import Credit, Experience, Probe, Scores
from megatron_empg.algorithms.diagnostics import batch_diagnostics
from megatron_empg.algorithms.policy_loss import kl_estimate
from megatron_empg.common.ranks import agreed, broadcast_bytes
from megatron_empg.recipe import Recipe
from megatron_empg.rollout.service.batch import Batch, without_texts
from megatron_empg.rollout.service.evaluation import Evaluation
from megatron_empg.rollout.service.stale_engines import StaleEngines
from megatron_empg.run.episode_log import write_episodes, write_steps
from megatron_empg.run.evaluations import Answered, write_answered
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.heartbeat import Heartbeat
from megatron_empg.run.metrics import MetricsWriter
from megatron_empg.run.timeline import write_timeline
from megatron_empg.trainer.advantages import annotated_episodes, credit_metrics
from megatron_empg.trainer.agreement import check_agreement
from megatron_empg.trainer.phases import Phases
from megatron_empg.trainer.policy_update import update_policy
from megatron_empg.trainer.progress_guard import ProgressGuard
from megatron_empg.trainer.scoring import score_probes, score_samples
from megatron_empg.trainer.turn_measurements import entropy_changes, turn_gradients

Answer = TypeVar("Answer")


class BatchSource(Protocol):
    """Where batches and evaluations come from; asked on rank 0 only."""

    def rollout(self, step: int) -> bytes | StaleEngines:
        """The batch of a step, as `Batch.to_bytes` made it."""
        ...

    def evaluate(self, split: str, greedy: bool) -> Evaluation | StaleEngines:
        """Success of the engines' current policy on the split's fixed questions."""
        ...

    def probe(self) -> int | StaleEngines:
        """Play a few training questions and forget them; raises if there is nothing to learn from."""
        ...


class Publisher(Protocol):
    """Brings weights to the engines; every rank has one and enters its methods with the others."""

    def publish(self, source: ActorWeights, version: int) -> object:
        """Publish to all engines that answer."""
        ...

    def refit(self, source: ActorWeights, version: int, engines: Sequence[str]) -> object:
        """Publish to these engines alone, which came back without weights; those that fail come back later.

        `engines` of the first rank count, not those of the others.
        """
        ...


class Training:
    """One run on one trainer rank. ``driver`` is given on rank 0 alone."""

    def __init__(
        self,
        recipe: Recipe,
        actor: Actor,
        folder: RunFolder,
        *,
        driver: BatchSource | None,
        publisher: Publisher,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self.recipe, self.actor, self.folder = recipe, actor, folder
        self.driver, self.publisher, self.phases = driver, publisher, Phases(heartbeat)
        self.progress = ProgressGuard(recipe)
        self.algorithm = Algorithm(recipe.algorithm)
        wanted = recipe.algorithm.kl_to_initial_every > 0 or self.algorithm.asks_reference
        self.reference = FrozenReference(actor) if wanted else None
        self.checkpoints = Checkpoints(
            actor,
            folder.checkpoints,
            keep=recipe.run.keep_checkpoints,
            recipe=recipe.model_dump(mode="json"),
            algorithm=self.algorithm,
        )
        self.first = self.checkpoints.load_newest()
        self.version = self.first
        """Of the weights that the engines were sent last."""
        self.writer = self._open_writer() if driver else None

    def run(self) -> None:
        """Train to the recipe's last step, or until asked to stop."""
        steps, every = self.recipe.run.steps, self.recipe.run.checkpoint_every
        self.phases.enter("sync")
        self._publish(self.first)
        if self.first == 0:
            self._look_before_training()
        saved = done = self.first
        stop = self._asked_to_stop()
        while done < steps and not stop:
            metrics = self._step(done)
            if self.checkpoints.saving:
                with self.phases.checkpoint():
                    self.checkpoints.poll()
            done += 1
            if self._evaluation_due(done):
                metrics |= self._evaluate(done)
            self._write(done, metrics)
            stop = self._asked_to_stop()  # also when it was asked while the evaluation went on
            if done % every == 0 or done == steps or stop:
                with self.phases.checkpoint():  # after the step's metrics are written, so that no step lacks them
                    self.checkpoints.save(done)
                saved = done
        self.checkpoints.wait()
        if saved == steps:
            self._export()
        if self.writer:
            self.writer.close()

    def _look_before_training(self) -> None:
        """The first questions and the first evaluation, but for what is left out when the run is asked to stop:
        a run without a checkpoint does both again when it goes on."""
        self._probe()
        if not self._asked_to_stop():
            self._write(0, self._evaluate(0))

    def _step(self, step: int) -> dict[str, float]:
        recipe, actor = self.recipe, self.actor
        self.phases.begin(step + 1)
        with self.phases.clock("rollout"):
            batch = self._fetch(step)
        metrics: dict[str, float] = {"policy_version": step, **batch.metrics}
        experience = replace(batch.experience, progress=step / recipe.run.steps)
        with self.phases.clock("score"):
            scores = score_samples(actor, experience.samples, recipe.rollout.temperature)
        metrics |= check_agreement(batch, scores, step, recipe)
        if experience.samples:
            metrics |= actor.throughput["score"].metrics("actor/score")
        probes = self._score_probes(self.algorithm.probes(experience))
        credit = self.algorithm.credit(experience, scores, probes)
        metrics |= credit_metrics(credit) | batch_diagnostics(experience, scores, credit)
        if self.writer:  # before what may end the run: who reads its message looks here next
            self._write_episodes(step + 1, batch, credit)
        idle = self.progress.check_batch(step, batch, credit, self._agree)
        metrics["train/idle"] = float(idle)
        if idle:
            actor.skip_updates(recipe.algorithm.updates_per_batch)
        else:
            metrics |= self._kl_to_initial(step, experience, scores, credit)
            metrics |= self._turn_gradients(step, experience, scores)
            metrics |= self._update(step, experience, scores, credit)
            metrics |= self._entropy_changes(step, experience, scores)
        with self.phases.clock("sync"):
            self._publish(step + 1)
        return metrics | self.phases.metrics(0 if idle else len(scores.logprobs))

    def _score_probes(self, probes: list[Probe]) -> list[Scores]:
        """What is scored beside the batch."""
        if not probes:
            return []
        with self.phases.clock("score"):
            return score_probes(self.actor, self.reference, probes, self.recipe.rollout.temperature)

    def _update(self, step: int, experience: Experience, scores: Scores, credit: Credit) -> dict[str, float]:
        """The batch's optimizer steps, and what was measured of them."""
        recipe, actor = self.recipe, self.actor
        with self.phases.clock("update"):
            update = update_policy(
                actor,
                self.algorithm,
                experience,
                scores,
                credit,
                temperature=recipe.rollout.temperature,
                seed=recipe.run.seed * 1_000_003 + step,
                agree=self._agree,
            )
        self.progress.check_updates(step, update.applied)
        return update.metrics | actor.throughput["update"].metrics("actor/update")

    def _kl_to_initial(
        self, step: int, experience: Experience, scores: Scores, credit: Credit
    ) -> dict[str, float]:
        """KL of the policy that sampled the batch to the initial one, at the batch's own tokens.

        Where the loss has a term for it, the batch was scored already, and it is measured in every step.
        """
        initial, every = credit.reference_logprobs, self.recipe.algorithm.kl_to_initial_every
        if initial is None:
            if not every or step % every:
                return {}
            (by_initial,) = self._score_probes([Probe(experience.samples, "reference")])
            initial = by_initial.logprobs
        return {"policy/kl_to_initial": float(kl_estimate(scores.logprobs, initial).mean())}

    def _turn_gradients(self, step: int, experience: Experience, scores: Scores) -> dict[str, float]:
        if not self._diagnoses(step):
            return {}
        turns, temperature = self.recipe.logging.diagnostics_turns, self.recipe.rollout.temperature
        with self.phases.clock("update"):
            return turn_gradients(self.actor, experience, scores, turns, temperature)

    def _entropy_changes(self, step: int, experience: Experience, scores: Scores) -> dict[str, float]:
        if not self._diagnoses(step):
            return {}
        with self.phases.clock("score"):
            return entropy_changes(self.actor, experience, scores, self.recipe.rollout.temperature)

    def _diagnoses(self, step: int) -> bool:
        every = self.recipe.logging.diagnostics_every
        return bool(every and step % every == 0)

    def _write_episodes(self, step: int, batch: Batch, credit: Credit) -> None:
        """Some episodes as readers see them, and the numbers of the batch's turns."""
        if batch.timeline is not None:
            write_timeline(self.folder, batch.timeline.of_step(step))
        count = self.recipe.logging.episodes_per_step
        write_episodes(self.folder, step, annotated_episodes(step, batch, credit, count), batch.untrained)
        write_steps(
            self.folder,
            step,
            step_entropies=credit.entropies.tolist(),
            step_advantages=credit.turns.tolist(),
            trajectory_advantages=credit.advantages.episodes[batch.experience.episode_of_turn].tolist(),
        )

    def _fetch(self, step: int) -> Batch:
        """Rank 0 asks the driver and keeps the texts; every rank gets the numbers."""
        data = self._asked(lambda driver: driver.rollout(step), "rollout")
        if data is not None:
            broadcast_bytes(without_texts(data), device())
            return Batch.from_bytes(data)
        return Batch.from_bytes(broadcast_bytes(memoryview(b""), device()))

    def _asked(self, question: Callable[[BatchSource], Answer | StaleEngines], phase: str) -> Answer | None:
        """What the rollout service answers, on rank 0. Engines that it names instead get the policy's weights, and
        it is asked again; so all ranks enter."""
        while True:
            answer = question(self.driver) if self.driver else None
            named = isinstance(answer, StaleEngines)
            if not self._agree(named):
                assert not isinstance(answer, StaleEngines)
                return answer
            self.phases.enter("sync")
            self._refit(answer.urls if isinstance(answer, StaleEngines) else ())
            self.phases.enter(phase)

    def _publish(self, version: int) -> None:
        """The policy's weights to all engines that answer."""
        self.version = version
        self.actor.settle()
        self.publisher.publish(self.actor.weights(), version)
        dist.barrier()

    def _refit(self, engines: Sequence[str]) -> None:
        """The newest weights to these alone, as rank 0 knows them."""
        if self._agree(bool(engines)):
            self.publisher.refit(self.actor.weights(), self.version, engines)

    def _probe(self) -> None:
        """Before the first step a few episodes are played: what cannot be learnt from is an error now."""
        self.phases.enter("rollout")
        self._asked(lambda driver: driver.probe(), "rollout")

    def _evaluation_due(self, done: int) -> bool:
        every = self.recipe.evaluation.every
        return done == self.recipe.run.steps or bool(every and done % every == 0)

    def _evaluate(self, step: int) -> dict[str, float]:
        """Success on every split, sampled and greedily, after so many steps.

        No rank waits longer for another than one pass takes.
        """
        settings = self.recipe.evaluation
        metrics: dict[str, float] = {}
        if not settings.questions:
            return metrics
        started = time.monotonic()
        for split, greedy in settings.grid():
            self.phases.enter("evaluate")
            measured = self._asked(partial(_evaluation, split, greedy), "evaluate")
            if measured is not None:
                metrics |= measured.metrics()
                write_answered(self.folder, Answered(step, measured.series, measured.answered))
        metrics["time/evaluate"] = time.monotonic() - started
        return metrics

    def _export(self) -> None:
        """The final policy as a Hugging Face folder, ready for any engine."""
        self.phases.enter("export")
        export_hugging_face(self.actor, self.folder.policy, like=self.recipe.model.path)
        if dist.get_rank() == 0:
            self.folder.note_export(self.recipe.run.steps)

    def _open_writer(self) -> MetricsWriter:
        return MetricsWriter(
            self.folder,
            first_step=self.first + 1 if self.first else 0,
            logging=self.recipe.logging,
            recipe=self.recipe.model_dump(mode="json"),
        )

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        if self.writer:
            self.writer.write(step, metrics)

    def _asked_to_stop(self) -> bool:
        """Whether the file STOP is there for rank 0; every rank asks at once."""
        return self._agree(self.folder.stop.exists())

    def _agree(self, flag: bool) -> bool:
        """Rank 0's answer, on every rank."""
        return agreed(flag, device())


def _evaluation(split: str, greedy: bool, driver: BatchSource) -> Evaluation | StaleEngines:
    return driver.evaluate(split, greedy)
