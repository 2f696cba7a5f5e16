"""Supervised warm-up: the policy learns to imitate the environment's scripted walkthroughs."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_empg.actor.actor import Actor, UpdateReport
from megatron_empg.actor.checkpoint import Checkpoints
from megatron_empg.actor.manifest import on_first_rank
from megatron_empg.actor.weights import export_hugging_face
from megatron_empg.algorithms.sample import Sample, TokenStreams
from megatron_empg.algorithms.segments import Segments
from megatron_empg.environments.base import Message, Task, TaskSource
from megatron_empg.recipe import RecipeError, SftRecipe
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.chat_use import ChatUse, HistoryKind
from megatron_empg.rollout.stripped_history import StrippedHistory
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.heartbeat import Heartbeat
from megatron_empg.run.metrics import MetricsWriter
from megatron_empg.trainer.initial_actor import initial_actor


class Imitation:
    """Cross-entropy of the walkthrough's own tokens."""

    statistics: tuple[str, ...] = ("correct_surely",)

    def __call__(
        self, logprobs: Tensor, entropies: Tensor, streams: TokenStreams, segments: Segments
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return -logprobs, {"correct_surely": correct_surely(logprobs)}


def correct_surely(logprobs: Tensor) -> Tensor:
    """1 at each token whose probability is above 0.9, else 0."""
    return (logprobs > -0.105).float()


VALIDATION_BATCHES = 4
"""So many batches of held-out walkthroughs make a measurement."""


def run_sft(recipe: SftRecipe, heartbeat: Heartbeat | None = None) -> None:
    """Train to the recipe's last step, or until asked to stop, on every rank; the policy of the newest checkpoint
    ends in ``run.folder/policy``."""
    actor = initial_actor(recipe)
    source = recipe.task_source()
    longest = min(recipe.actor.longest_sequence, actor.config.max_position_embeddings)
    walkthroughs = WalkthroughTokens(recipe.model.path, longest, history=recipe.sft.history)
    held_out = _held_out(recipe, source, walkthroughs)
    folder = RunFolder(recipe.run.folder)
    checkpoints = Checkpoints(
        actor, folder.checkpoints, keep=recipe.run.keep_checkpoints, recipe=recipe.model_dump(mode="json")
    )
    first = checkpoints.load_newest()
    if heartbeat:
        heartbeat.enter("update")
    writer = _open_writer(recipe, folder, first)
    if first == 0 and held_out:
        before = validate(actor, held_out)
        if writer:
            writer.write(0, before)
    for step in range(first, recipe.run.steps):
        started = time.monotonic()
        if heartbeat:
            heartbeat.step = step + 1
        tasks = source.sample(recipe.sft.split, recipe.sft.batch_size, seed=recipe.run.seed * 1_000_003 + step)
        samples = walkthroughs.samples(source, tasks, seed=step)
        report = actor.update(samples, Imitation())
        done, seconds = step + 1, time.monotonic() - started
        metrics = _metrics(report, seconds)
        if held_out and (done % recipe.sft.validate_every == 0 or done == recipe.run.steps):
            metrics |= validate(actor, held_out)
        if writer:
            writer.write(done, metrics)
        checkpoints.poll()
        # Rank 0's answer for all: a file may be there for one rank and not yet for the next.
        stop = on_first_rank(folder.stop.exists)
        if done % recipe.run.checkpoint_every == 0 or done == recipe.run.steps or stop:
            checkpoints.save(done)
            _export(actor, recipe, folder, done)
        if stop:
            break
    checkpoints.wait()
    if first >= recipe.run.steps:  # it was ended between its last checkpoint and the export
        _export(actor, recipe, folder, first)
    if writer:
        writer.close()


def validate(actor: Actor, held_out: list[Sample]) -> dict[str, float]:
    """Mean loss of held-out walkthroughs' own tokens, and the share of them that is sure; all ranks together."""
    logprobs = torch.cat([score.logprobs for score in actor.score(held_out)])
    return {
        "validation/loss": float(-logprobs.double().mean()),
        "validation/correct_surely": float(correct_surely(logprobs).double().mean()),
    }


def _held_out(recipe: SftRecipe, source: TaskSource, walkthroughs: "WalkthroughTokens") -> list[Sample]:
    """The same walkthroughs of test_id at every start; none unless the recipe wants them measured."""
    if not recipe.sft.validate_every:
        return []
    if not len(source.tasks("test_id")):
        raise RecipeError(
            "sft.validate_every needs held-out questions, but the split test_id has none: set it to 0"
        )
    tasks = source.sample("test_id", VALIDATION_BATCHES * recipe.sft.batch_size, seed=0)
    return walkthroughs.samples(source, tasks, seed=0)


def _metrics(report: UpdateReport, seconds: float) -> dict[str, float]:
    return {
        "policy/loss": report.loss, "policy/entropy": report.means["entropy"],
        "policy/correct_surely": report.means["correct_surely"], "policy/grad_norm": report.grad_norm,
        "policy/lr": report.lr, "tokens_per_second": report.tokens / seconds, "time/step": seconds,
        "skipped_updates": int(not report.applied),
    }  # fmt: skip


def _export(actor: Actor, recipe: SftRecipe, folder: RunFolder, step: int) -> None:
    export_hugging_face(actor, folder.policy, like=recipe.model.path)
    if dist.get_rank() == 0:
        folder.note_export(step)


def _open_writer(recipe: SftRecipe, folder: RunFolder, first: int) -> MetricsWriter | None:
    """On rank 0, for a run that starts after step `first`."""
    if dist.get_rank() > 0:
        return None
    return MetricsWriter(
        folder,
        first_step=first + 1 if first else 0,
        logging=recipe.logging,
        recipe=recipe.model_dump(mode="json"),
    )


class WalkthroughTokens:
    """Turns scripted walkthroughs into samples, with the very pieces an episode is made of."""

    def __init__(self, folder: Path, max_tokens: int, *, history: HistoryKind = "keep") -> None:
        """`max_tokens`: a longer walkthrough is cut after the last turn that fits. With `history` strip, and where
        the environment writes what a turn reads anew, each turn is a sample."""
        self._chat = ChatTokens.from_pretrained(folder, history=history)
        self._max_tokens = max_tokens

    def samples(self, source: TaskSource, tasks: Sequence[Task], seed: int) -> list[Sample]:
        """Walkthroughs in tokens; the actions (with their end-of-turn token) are the policy's own.

        Raises ValueError for a task whose first turn does not fit, or that the chat template does not.
        """
        return [sample for task in tasks for sample in self.walkthrough(source, task, seed)]

    def walkthrough(self, source: TaskSource, task: Task, seed: int) -> list[Sample]:
        """One walkthrough. Raises ValueError as `samples` does."""
        demonstrations = source.demonstrations()
        assert demonstrations is not None, "checked before any process started"
        chat, use = self._chat, ChatUse.of(task)
        chat.fit(use)
        shown = demonstrations.walkthrough(task, seed)
        tokens, stripped = self._begun([*task.prompt, *shown.opening.messages], use)
        ended: list[Sample] = []
        turns: list[tuple[int, int]] = []
        for turn in shown.turns:
            own = chat.turn(turn.action)
            if len(tokens) + len(own) > self._max_tokens:
                break
            turns.append((len(tokens), len(tokens) + len(own)))
            tokens = tokens + own
            if turn.observation is None:
                continue
            if turn.context is not None:
                ended.append(_sample(tokens, turns))
                turns = []
                tokens, stripped = self._begun(turn.context, use)
                continue
            between = chat.between_turns(turn.observation, use, cut=False)
            if stripped is None:
                tokens = tokens + between
                continue
            ended.append(_sample(tokens, turns))
            tokens, turns = stripped.take(stripped.with_turn(own), between), []
        if turns:
            ended.append(_sample(tokens, turns))
        if not ended:
            raise ValueError(
                f"the prompt of task {task.id!r} has {len(tokens)} tokens, which leave no room for a turn in the "
                f"{self._max_tokens} that there are (the smaller of a microbatch, actor.max_tokens_per_microbatch "
                "x actor.context_parallel, and the model's max_position_embeddings): raise the smaller one, or "
                "shorten the task or what environment.settings put before it"
            )
        return ended

    def _begun(self, messages: list[Message], use: ChatUse) -> tuple[list[int], StrippedHistory | None]:
        """What a first turn reads, and how it is read later where that is without thoughts."""
        tokens = self._chat.prompt(messages, use)
        if self._chat.history != "strip":
            return tokens, None
        return tokens, StrippedHistory(self._chat, use, tokens)


def _sample(tokens: list[int], turns: list[tuple[int, int]]) -> Sample:
    """Up to the last turn's end: an observation that no turn follows teaches nothing, and may not fit."""
    return Sample(torch.tensor(tokens[: turns[-1][1]]), torch.tensor(turns))
