"""Supervised warm-up: the policy learns to imitate the environment's scripted walkthroughs."""

import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_empg.actor.checkpoint import Checkpoints
from megatron_empg.actor.packing import Sequence
from megatron_empg.actor.weights import export_hugging_face
from megatron_empg.environments.base import Task, TaskSource
from megatron_empg.environments.registry import make_task_source
from megatron_empg.recipe import ActorSection, SftRecipe
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.trainer.build import build_actor
from megatron_empg.trainer.metrics import MetricsWriter
from megatron_empg.trainer.run_folder import RunFolder


class Imitation:
    """Cross-entropy of the walkthrough's own tokens."""

    statistics: tuple[str, ...] = ("correct_surely",)

    def __call__(
        self, logprob: Tensor, entropy: Tensor, values: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return -logprob, {"correct_surely": (logprob > -0.105).float()}  # probability above 0.9


def run_sft(recipe: SftRecipe) -> None:
    """Train to the recipe's last step, on every rank; the policy ends in ``run.folder/policy``."""
    actor = build_actor(recipe)
    acting = recipe.environment
    source = make_task_source(acting.name, max_turns=acting.max_turns, **acting.settings)
    walkthroughs = WalkthroughTokens(recipe.model.path, longest_sequence(recipe.actor))
    folder = RunFolder(recipe.run.folder)
    checkpoints = Checkpoints(
        actor, folder.checkpoints, keep=recipe.run.keep_checkpoints, recipe=recipe.model_dump(mode="json")
    )
    first = checkpoints.load_newest()
    writer = _open_writer(recipe, folder, first)
    for step in range(first, recipe.run.steps):
        started = time.monotonic()
        tasks = source.sample(recipe.sft.split, recipe.sft.batch_size, seed=recipe.run.seed * 1_000_003 + step)
        sequences = [walkthroughs.sequence(source, task, seed=step) for task in tasks]
        report = actor.update(sequences, Imitation())
        if writer:
            seconds = time.monotonic() - started
            writer.write(step + 1, {
                "policy/loss": report.loss, "policy/entropy": report.means["entropy"],
                "policy/correct_surely": report.means["correct_surely"], "policy/grad_norm": report.grad_norm,
                "policy/lr": report.lr, "tokens_per_second": report.tokens / seconds, "time/step": seconds,
                "skipped_updates": int(not report.applied),
            })  # fmt: skip
        checkpoints.poll()
        if (step + 1) % recipe.run.checkpoint_every == 0 or step + 1 == recipe.run.steps:
            checkpoints.save(step + 1)
            export_hugging_face(actor, folder.root / "policy", like=recipe.model.path)
    checkpoints.wait()


def _open_writer(recipe: SftRecipe, folder: RunFolder, first: int) -> MetricsWriter | None:
    """On rank 0, for a run that starts after step `first`."""
    if dist.get_rank() > 0:
        return None
    return MetricsWriter(folder, first_step=first + 1, tensorboard=recipe.logging.tensorboard)


def longest_sequence(actor: ActorSection) -> int:
    """Tokens of the longest sequence that a microbatch can hold, its padding for context parallelism included."""
    room = actor.max_tokens_per_microbatch * actor.context_parallel
    return room - room % (2 * actor.context_parallel) if actor.context_parallel > 1 else room


class WalkthroughTokens:
    """Turns scripted walkthroughs into sequences, with the very pieces an episode is made of."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        """`max_tokens`: a longer walkthrough is cut after the last turn that fits."""
        self._chat = ChatTokens.from_pretrained(folder)
        self._max_tokens = max_tokens

    def sequence(self, source: TaskSource, task: Task, seed: int) -> Sequence:
        """A walkthrough in tokens; the actions (with their end-of-turn token) are the policy's own.

        Raises ValueError for a task whose first turn does not fit.
        """
        tokens, steps = self._chat.prompt(task.prompt), []
        for action, observation in source.walkthrough(task, seed):
            own = self._chat.turn(action)
            if len(tokens) + len(own) > self._max_tokens:
                break
            steps.append((len(tokens), len(tokens) + len(own)))
            tokens += own
            if observation is not None:
                tokens += self._chat.between_turns(observation, cut=False)
        if not steps:
            raise ValueError(
                f"the prompt of task {task.id!r} has {len(tokens)} tokens, which leave no room for a turn in the "
                f"{self._max_tokens} of a microbatch (actor.max_tokens_per_microbatch x actor.context_parallel): "
                "raise them, or shorten the task or what environment.settings put before it"
            )
        # An observation that no turn follows teaches nothing, and may be what does not fit.
        end = steps[-1][1]
        return Sequence(torch.tensor(tokens[:end]), torch.tensor(steps))
